"""What a run says before its first step: facts, beta and every loss weight, what changed since the checkpoint."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unified_vae.analysis.preflight import Preflight, check_collapse_risk, largest_beta_where, preflight_facts
from unified_vae.config.data import FEW_IMAGES_PER_LATENT
from unified_vae.config.loss import Capacity, Geco, KLConfig, TermConfig
from unified_vae.config.schedule import describe as describe_schedule
from unified_vae.config.schedule import factor
from unified_vae.core.distributions import VAEOutput
from unified_vae.core.events import RunStarted, TermRow
from unified_vae.data.augment import describe as describe_augmentation
from unified_vae.losses.kl import describe_constraint
from unified_vae.pipeline.build import mean_over_batch
from unified_vae.pipeline.setup import TrainJob
from unified_vae.training.memory import MicroBatches
from unified_vae.training.train_step import refuse_dead_terms
from unified_vae.training.validation import in_bits

SELF_TEST_IMAGES = 8
USUAL_GAIN = "0.5 to 2.5 dB"  # of 1,000 steps or more with few images: docs/log.md


def announce(job: TrainJob) -> None:
    """Show notices on data and losses, warn of predicted posterior collapse, and test the loss terms.

    Raises:
        ConfigError: collapse is predicted and `preflight` is `strict`, or a loss term has no gradient.
    """
    notice, requested, config = job.observer.notice, job.request.run.config.loss.kl, job.config
    for note in job.data.notes:
        notice(note)
    for entry in job.resolved.substitutions:
        since = " (as when this run began)" if job.resumed_from else ""
        notice(
            f"loss.{entry.term} is replaced by loss.{entry.replacement}{since}: {entry.reason.rstrip('.')}. "
            f"To make this an error: --set loss.{entry.term}.missing=strict"
        )
    if requested.reduction != "nats":
        beta = config.loss.kl.weight
        notice(f"kl.weight {requested.weight:g} in the convention {requested.reduction} is beta {beta:.4g} here")
    if job.data.quarantined and job.runtime.is_main:
        notice(f"files that cannot be used are listed, with reasons, in {job.folder.quarantine}")
    in_nats = "" if requested.reduction == "nats" else " with --set loss.kl.reduction=nats"
    beta = job.preflight.planned_beta(config.loss.kl)
    if warning := check_collapse_risk(job.preflight, beta, config.preflight == "strict", in_nats):
        notice(warning)

    # every term needs a gradient; a few images suffice to see it
    count = min(len(job.images), SELF_TEST_IMAGES)

    def self_test(num_micro_batches: int) -> bool:
        size = math.ceil(count / num_micro_batches)
        refuse_dead_terms(job.train_step.model, job.train_step.objective, job.images[:size], job.noise[:size])
        return True

    MicroBatches(job.runtime).run_with_oom_retry(count, self_test)


def run_header(job: TrainJob) -> RunStarted:
    """The event that starts a run, new or resumed. Every rank takes part."""
    config, state, schedule = job.config, job.state, job.schedule
    planned = job.preflight.planned_beta(config.loss.kl)
    return RunStarted(
        run_dir=job.folder.root,
        start_step=state.step,
        total_steps=schedule.total_steps,
        steps_per_epoch=schedule.steps_per_epoch,
        batch_size=schedule.batch_size,
        resumed=state.step > 0,
        facts=[
            *_model_facts(job),
            ("images", job.data_location),
            *_resolved_facts(job),
            _first_batch_fact(job),
            *preflight_facts(job.preflight, planned),
            *constraint_facts(job.preflight, config.loss.kl),
        ],
        terms=term_rows(job, schedule.progress(state.step)),
        differences=tuple(job.differences),
    )


def _model_facts(job: TrainJob) -> list[tuple[str, str]]:
    schedule, model, data = job.schedule, job.train_step.model, job.data
    count = sum(parameter.numel() for parameter in model.parameters())
    fixed = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    fixed_text = f", {fixed:,} of them fixed" if fixed else ""
    selection = f"selected by validation PSNR from step {schedule.selection_start_step:,} on, after all warm-ups"
    if schedule.selection_start_step == schedule.total_steps:
        selection = "those of the last step: the objective changes until then, and early stopping is inactive"
    length = f"{schedule.total_steps:,} of {schedule.batch_size} images, {schedule.steps_per_epoch:,} per epoch"
    facts = [
        ("device", job.runtime.describe()),
        ("data", data.description),
        ("augmentation", _augmentation_text(job)),
        ("model", f"{job.config.model.family}, {count:,} parameters{fixed_text}, {data.channels} channel(s)"),
        ("steps", length),
        ("best weights", selection),
        ("self-test", "every enabled loss term has a gradient"),
    ]
    images, latents = len(data.train), job.config.model.latents
    if job.config.model.positions == 1 and images < FEW_IMAGES_PER_LATENT * latents:
        more = f" and {USUAL_GAIN} more" if schedule.total_steps >= 1000 else ""
        facts.insert(2, ("set size", f"{images:,} are few for {latents:,} latents: expect the PCA line below{more}"))
    if (sigma := job.train_step.objective.sigma()) is not None:
        facts.append(("sigma", f"{sigma:.4f} of the pixel range: the decoder's noise, calibrated as it trains"))
    return facts


def _augmentation_text(job: TrainJob) -> str:
    """What is changed in the images; where they are mirrored unasked, how to leave that."""
    text, asked = describe_augmentation(job.config.data.augment), job.request.run.config.data.augment
    if asked.horizontal_flip == "auto" and job.config.data.augment.horizontal_flip:
        text += ". Where left and right must not be exchanged: --set data.augment.horizontal_flip=false"
    return text


def _resolved_facts(job: TrainJob) -> list[tuple[str, str]]:
    """What the run resolved at its start or on its way, and continues with."""
    training, reasons, state, facts = job.config.training, job.resolved.reasons, job.state, []
    if reason := reasons.get("training.batch_size"):
        facts.append(("batch size", f"{job.schedule.batch_size}, {reason}"))
    if training.precision == "auto" and job.runtime.supports_bf16:
        facts.append(("precision", "fp32; this CPU has bf16 too, often 1.5 times as fast: --precision bf16"))
    compiled = "on" if training.compile is True else "off"
    for name, value in (("memory_format", training.memory_format), ("compile", compiled)):
        reason = reasons.get(f"training.{name}", "")
        if job.runtime.device.type == "cuda" and reason and not reason.startswith("auto: as when"):
            facts.append((name.replace("_", " "), f"{value}, {reason}"))
    if state.num_micro_batches:
        size = job.schedule.micro_batch_size(job.runtime.world_size, state.num_micro_batches)
        facts.append(("memory", f"micro-batches of at most {size} images, after out-of-memory"))
    if state.lr_scale != 1:
        text = f"{state.lr_scale:g} times what the schedule says, since a rollback after NaN/Inf"
        facts.append(("learning rate", text))
    if state.skipped_steps:
        facts.append(("skipped steps", f"{state.skipped_steps:,}, listed in skipped.jsonl"))
    return facts


@torch.no_grad()
def _first_batch_fact(job: TrainJob) -> tuple[str, str]:
    """KL of the model as it stands with drawn latents, and its distortion where that is a likelihood."""
    objective, progress = job.train_step.objective, job.schedule.progress(job.state.step)

    def losses(output: VAEOutput, images: Tensor) -> Tensor:
        value = objective(output, images, progress)
        return torch.stack([value.nll, value.rate])

    nll, kl = mean_over_batch(job.train_step, job.images, job.noise, losses).tolist()
    bits = in_bits(kl, nll, objective.dimensions)
    if not objective.is_likelihood:
        return "first batch", f"KL {kl:,.1f} nats per image ({bits['rate.bits_per_dim']:.4f} bits per dimension)"
    distortion = f"NLL {nll:,.0f} nats per image ({bits['distortion.bits_per_dim']:.3f} bits per dimension)"
    total = bits["distortion.bits_per_dim"] + bits["rate.bits_per_dim"]
    return "first batch", f"{distortion}, KL {kl:,.1f} nats ({bits['rate.bits_per_dim']:.4f}), together {total:.3f}"


def term_rows(job: TrainJob, progress: float) -> list[TermRow]:
    """Beta and every loss weight, also the weights that are 0."""
    loss, objective = job.config.loss, job.train_step.objective
    notes = {entry.term: f"replaced by {entry.replacement}" for entry in job.resolved.substitutions}
    notes |= {name: f"{share:.0%} of the distortion" for name, share in objective.shares(progress).items()}
    parts = ["beta, per nat of KL"]
    if bound := describe_constraint(loss.kl.constraint, progress):
        parts.append(bound)
    if isinstance(loss.kl.constraint, Geco):
        parts.append(f"beta now {objective.beta(progress):.3g}")
    notes["kl"] = "; ".join(parts)
    terms: dict[str, TermConfig | KLConfig] = {name: getattr(loss, name) for name in type(loss).model_fields}
    return [
        TermRow(
            name=f"loss.{name}",
            weight=term.weight,
            schedule=describe_schedule(term.schedule),
            # GECO moves beta by itself
            factor=objective.beta(progress) / term.weight
            if name == "kl" and term.weight > 0
            else factor(term.schedule, progress),
            note=notes.get(name, ""),
        )
        for name, term in terms.items()
        if hasattr(term, "weight")
    ]


def constraint_facts(theory: Preflight, kl: KLConfig) -> list[tuple[str, str]]:
    """What linear theory says about a constraint on the KL; empty where there is nothing to say."""
    match kl.constraint:
        case Capacity(capacity=nats) if theory.planned_beta(kl) == kl.weight:
            expected = theory.linear(kl.weight).rate
            text = (
                f"beta {kl.weight:g} is too low to hold the KL at {nats:g} nats: linear theory expects {expected:.0f}"
            )
            return [("capacity", f"{text}. Use a higher --beta, ten times as much say")]
        case Geco() as geco:
            best = theory.linear(geco.min_beta)
            if best.sigma**2 > geco.target:  # the error of training images, decoded from drawn latents
                reached = -20 * math.log10(best.sigma)
                text = (
                    f"linear theory reaches {reached:.1f} dB with {theory.latents} latents: unless the network adds "
                    f"the rest to {geco.psnr:g} dB, beta falls to {geco.min_beta:g} and the KL grows without need. Use "
                    "more latents or a lower psnr"
                )
                return [("geco", text)]
            beta = largest_beta_where(lambda beta: theory.linear(beta).sigma ** 2 <= geco.target)
            beta = min(beta, geco.max_beta)
            rate = theory.linear(beta).rate
            return [("geco", f"linear theory meets {geco.psnr:g} dB at beta {beta:.3g}, with KL {rate:.0f} nats")]
        case _:
            return []
