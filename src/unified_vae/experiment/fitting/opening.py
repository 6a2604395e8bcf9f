"""What a run says of itself before its first step: the facts, beta and every weight, what changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unified_vae.config import schedule
from unified_vae.config.data import AugmentConfig
from unified_vae.config.loss import Geco, KLConfig, TermConfig
from unified_vae.data.augment import describe
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.diagnosis import preflight
from unified_vae.experiment.diagnosis.preflight import Preflight
from unified_vae.experiment.fitting.assemble import Parts, Resolved
from unified_vae.experiment.fitting.constraint_facts import constraint_facts
from unified_vae.experiment.fitting.tuning import NOT_TIMED
from unified_vae.losses import constraint
from unified_vae.losses.objective import Objective
from unified_vae.training.observers import Difference, RunStarted, TermRow
from unified_vae.training.plan import Plan
from unified_vae.training.runtime import Runtime
from unified_vae.training.state import TrainState
from unified_vae.training.validation import in_bits

FEW_IMAGES = 50_000
MANY_EPOCHS = 10  # fewer do not learn the images by heart


def opening(
    run_dir: Path,
    runtime: Runtime,
    parts: Parts,
    resolved: Resolved,
    data: DataSets,
    state: TrainState,
    differences: Sequence[Difference],
    flight: Preflight,
    point: tuple[float, float],
    where: str,
) -> RunStarted:
    """The event that opens a run, fresh or resumed.

    Args:
        point: distortion and rate on the first batch, nats per image.
        where: the training images are, in words.
    """
    plan, kl = parts.plan, resolved.config.loss.kl
    expected = [*preflight.lines(flight, flight.planned_beta(kl)), *constraint_facts(flight, kl)]
    return RunStarted(
        run_dir=run_dir,
        start_step=state.step,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        batch_size=plan.batch_size,
        resumed=state.step > 0,
        facts=[
            *_facts(runtime, parts, resolved, data),
            ("images", where),
            *_learnt(runtime, plan, resolved, state),
            _first_batch(point, parts.objective),
            *expected,
        ],
        terms=term_rows(parts.objective, resolved, plan.progress(state.step)),
        differences=tuple(differences),
    )


def _facts(runtime: Runtime, parts: Parts, resolved: Resolved, data: DataSets) -> list[tuple[str, str]]:
    plan = parts.plan
    count = sum(parameter.numel() for parameter in parts.model.parameters())
    fixed = sum(parameter.numel() for parameter in parts.model.parameters() if not parameter.requires_grad)
    path = f", {fixed:,} of them the fixed linear path's" if fixed else ""
    facts = [
        ("device", runtime.describe()),
        ("data", data.description),
        (
            "augmentation",
            augmentation_words(resolved.config.data.augment, len(data.train), plan.total_steps / plan.steps_per_epoch),
        ),
        ("model", f"{resolved.config.model.family}, {count:,} parameters{path}, {data.channels} channel(s)"),
        ("steps", f"{plan.total_steps:,} of {plan.batch_size} images, {plan.steps_per_epoch:,} an epoch"),
        ("best weights", _choice(plan)),
        ("self-test", "every enabled term moves the weights it should"),
    ]
    if (sigma := parts.objective.sigma()) is not None:
        text = f"{sigma:.4f} of the pixel range: the decoder's noise, calibrated as it trains"
        facts.append(("sigma", text))
    return facts


def _learnt(runtime: Runtime, plan: Plan, resolved: Resolved, state: TrainState) -> list[tuple[str, str]]:
    """What the run found out on its way and goes on with."""
    facts = []
    if reason := resolved.reasons.get("training.batch_size"):
        facts.append(("batch size", f"{plan.batch_size}, {reason}"))
    facts += _computed(runtime, resolved)
    if state.pieces:
        at_once = plan.micro_batch(runtime.world_size, state.pieces)
        facts.append(("memory", f"micro-batches of at most {at_once} images, as more had not fitted"))
    if state.lr_scale != 1:
        times = f"{state.lr_scale:g} times what the schedule says, since the run went back"
        facts.append(("learning rate", f"{times} from numbers that were not finite"))
    if state.skipped:
        facts.append(("skipped steps", f"{state.skipped:,}, listed in skipped.jsonl"))
    return facts


def _computed(runtime: Runtime, resolved: Resolved) -> list[tuple[str, str]]:
    """How the network is computed, where it was found out; the words of the table alone are not worth a line."""
    training, facts = resolved.config.training, []
    if training.precision == "auto" and runtime.has_bf16_to_offer:
        facts.append(("precision", "fp32; this CPU has bf16 too, often 1.5 times as fast: --precision bf16"))
    for name, value in (
        ("memory_format", training.memory_format),
        ("compile", "on" if training.compile is True else "off"),
    ):
        reason = resolved.reasons.get(f"training.{name}", "")
        if reason and not reason.startswith(("as asked", "auto: as when")) and NOT_TIMED not in reason:
            facts.append((name.replace("_", " "), f"{value}, {reason}"))
    return facts


def augmentation_words(config: AugmentConfig, images: int, epochs: float) -> str:
    """What is changed in the images; where nothing is and they are few, what mirroring would bring."""
    words = describe(config)
    if config != AugmentConfig() or images >= FEW_IMAGES or epochs < MANY_EPOCHS:
        return words
    return (
        f"{words}; {images:,} images, each seen {epochs:,.0f} times, are few. Where left and right may be exchanged, "
        "mirror half of them: --set data.augment.horizontal_flip=true (+0.6 dB on 400 portraits)"
    )


def _choice(plan: Plan) -> str:
    """Which weights count as the best."""
    if plan.settled == plan.total_steps:
        return "those of the last step: what is minimised changes until then, and patience does not count"
    return f"chosen by validation PSNR from step {plan.settled:,} on, when all warm-ups are over"


def _first_batch(point: tuple[float, float], objective: Objective) -> tuple[str, str]:
    """Distortion, where it is a likelihood, and rate of the model as it stands."""
    nll, rate = point
    bits = in_bits(rate, nll, objective.dimensions)
    if not objective.is_likelihood:
        return "first batch", f"KL {rate:,.1f} nats an image ({bits['rate.bits_per_dim']:.4f} bits per dimension)"
    distortion = f"NLL {nll:,.0f} nats an image ({bits['distortion.bits_per_dim']:.3f} bits per dimension)"
    both = bits["distortion.bits_per_dim"] + bits["rate.bits_per_dim"]
    return "first batch", f"{distortion}, KL {rate:,.1f} nats ({bits['rate.bits_per_dim']:.4f}), together {both:.3f}"


def term_rows(objective: Objective, resolved: Resolved, progress: float) -> list[TermRow]:
    """Beta and every weight, also the weights that are 0."""
    loss = resolved.config.loss
    notes = {entry.term: f"replaced by {entry.replacement}" for entry in resolved.substitutions}
    shares = {
        row.name: f"{row.share:.0%} of the distortion" for row in objective.rows(progress) if row.share is not None
    }
    notes |= shares | {"kl": _about_beta(loss.kl, objective, progress)}
    terms = {name: getattr(loss, name) for name in type(loss).model_fields}
    return [
        TermRow(
            name=f"loss.{name}",
            weight=term.weight,
            schedule=schedule.describe(term.schedule),
            factor=_factor(name, term, objective, progress),
            note=notes.get(name, ""),
        )
        for name, term in terms.items()
        if hasattr(term, "weight")
    ]


def _about_beta(kl: KLConfig, objective: Objective, progress: float) -> str:
    words = ["beta, per nat of KL"]
    if bound := constraint.describe(kl.constraint, progress):
        words.append(bound)
    if isinstance(kl.constraint, Geco):
        words.append(f"beta now {objective.beta(progress):.3g}")
    return "; ".join(words)


def _factor(name: str, term: TermConfig | KLConfig, objective: Objective, progress: float) -> float:
    """What the weight is multiplied by at this moment; GECO moves beta by itself."""
    if name == "kl" and term.weight > 0:
        return objective.beta(progress) / term.weight
    return schedule.factor(term.schedule, progress)
