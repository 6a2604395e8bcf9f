"""Attribute edits on the built-in faces, judged by a classifier of pixels that was trained on the generator's faces.

For each attribute, each face of the validation side is taken to another value, and the classifier says whether it has
it now, and which other attributes changed. Changes are counted against the face as the model reconstructs it, so that
what the model blurs away is not blamed on the edit; how well the classifier reads attributes off faces and off
reconstructions is told beside it, for an attribute that the model does not keep cannot be edited.

The strength of each attribute is chosen on one half of the faces, and the figures are of the other half.
--methods compares ways to find directions, on the first half alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runs import NOT_ASKED, Job, images, pixels, train
from script import overrides, parser, save, settle, start, table
from unified_vae.analysis.attributes import Array, Attribute, Directions
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.rng import key
from unified_vae.data.cartoon.faces import ATTRIBUTE_NAMES, draw_faces, face_attributes
from unified_vae.inference.load import load_model
from unified_vae.models.vae import VAE

NAME = "attribute_edit"
TARGETS = {"edited": 0.8, "others": 0.2}
KEPT = 0.9  # of what the classifier reads off faces, it reads off reconstructions: the model keeps the attribute
STRENGTHS = (1.0, 1.25, 1.5, 2.0)
CHUNK = 250
DRAWN_AT_ONCE = 500
LEARN_SEED, TEST_SEED = 1, 2  # of the classifier's faces; the built-in set is 0

Numbers = npt.NDArray[np.int64]
Labels = Mapping[str, Numbers]


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--image-size", type=int, default=64)
    options.add_argument("--latents", type=int, default=128)
    options.add_argument("--base-channels", type=int, default=32)
    options.add_argument("--epochs", type=int, default=40)
    options.add_argument("--run", type=Path, help="a run on the built-in faces that is there already")
    options.add_argument("--labelled", type=int, default=20_000, help="faces that directions are learnt from")
    options.add_argument("--faces", type=int, default=1000, help="that are edited; half of them choose the strengths")
    options.add_argument("--probe-faces", type=int, default=24_000)
    options.add_argument("--probe-epochs", type=int, default=5)
    options.add_argument("--methods", action="store_true", help="compare ways to find directions, by the first half")
    given = settle(options.parse_args())
    if given.quick:
        given.image_size, given.latents, given.base_channels, given.epochs = 16, 16, 4, 1
        given.labelled, given.faces, given.probe_faces, given.probe_epochs = 600, 60, 256, 1
    return given


# --- the classifier --------------------------------------------------------------------------------------


class Probe(nn.Module):
    """Pixels [n, 3, size, size] -> logits of each attribute. Plain: convolutions, batch norm, one hidden layer."""

    def __init__(self, size: int, width: int = 24) -> None:
        super().__init__()
        wide = [3, width, width, 2 * width, 2 * width, 4 * width]
        strides = [1, 2, 2, 1, 2] if size <= 32 else [2, 2, 2, 1, 2]
        layers: list[nn.Module] = []
        for before, after, stride in zip(wide, wide[1:], strides, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
        side = size // (8 if size <= 32 else 16)
        layers += [nn.Flatten(), nn.Linear(4 * width * side**2, 256), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(values)) for name, values in ATTRIBUTE_NAMES.items()})

    def forward(self, faces: Tensor) -> dict[str, Tensor]:
        features = self.body(faces)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, faces: Tensor) -> Labels:
        """The value of each attribute of each face, in the classifier's eyes."""
        parts = [self(some) for some in faces.split(CHUNK)]
        return {name: torch.cat([part[name] for part in parts]).argmax(1).numpy() for name in ATTRIBUTE_NAMES}


def drawn(seed: int, count: int, size: int) -> tuple[Tensor, Labels]:
    """Faces of the generator, uint8 [n, 3, size, size], and their labels."""
    faces = [
        draw_faces(seed, np.arange(first, min(first + DRAWN_AT_ONCE, count)), size)
        for first in range(0, count, DRAWN_AT_ONCE)
    ]
    tensor = torch.from_numpy(np.concatenate(faces)).permute(0, 3, 1, 2).contiguous()
    return tensor, face_attributes(seed, np.arange(count))


def trained_probe(options: argparse.Namespace) -> Probe:
    """The classifier, trained on faces that are blurred and noisy at random, for reconstructions are soft.

    It is kept in the work folder.
    """
    torch.manual_seed(0)
    probe = Probe(options.image_size)
    path = options.work_dir / f"probe-{options.image_size}-{options.probe_faces}-{options.probe_epochs}.safetensors"
    if path.is_file():
        probe.load_state_dict(safetensors.torch.load(path.read_bytes()))
        return probe.eval()
    faces, labels = drawn(LEARN_SEED, options.probe_faces, options.image_size)
    _learn(probe, faces, {name: torch.from_numpy(values) for name, values in labels.items()}, options.probe_epochs)
    write_tensors(path, {name: value.clone() for name, value in probe.state_dict().items()})
    return probe.eval()


def _learn(probe: Probe, faces: Tensor, labels: Mapping[str, Tensor], epochs: int, batch: int = 128) -> None:
    random = torch.Generator().manual_seed(0)
    steps = len(faces) // batch
    optimizer = torch.optim.AdamW(probe.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * steps)
    for epoch in range(epochs):
        order = torch.randperm(len(faces), generator=random)
        for rows in order[: steps * batch].split(batch):
            some = _spoilt(faces[rows].float() / 255, random)
            loss = sum((F.cross_entropy(found, labels[name][rows]) for name, found in probe(some).items()), Tensor([0]))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
        print(f"  classifier: epoch {epoch + 1}/{epochs}, loss {loss.item():.2f}", flush=True)


def _spoilt(faces: Tensor, random: torch.Generator) -> Tensor:
    sigma = 1.2 * faces.shape[-1] / 32 * float(torch.rand((), generator=random))
    noise = 0.03 * float(torch.rand((), generator=random)) * torch.randn(faces.shape, generator=random)
    return _blurred(faces, sigma) + noise if sigma >= 0.2 else faces + noise


def _blurred(faces: Tensor, sigma: float) -> Tensor:
    reach = max(3, round(3 * sigma))
    kernel = torch.exp(-((torch.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(faces, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


# --- ways to find directions -----------------------------------------------------------------------------

Shifts = Callable[[str, Array, Numbers, Numbers], Array]
"""(attribute, latents [n, latents], value that each has, value that each is to have) -> [n, latents] at strength 1."""


def by_verb(learnt: Directions) -> Shifts:
    """As `unified-vae edit` does; which value a face has is what the latents tell, not its label."""

    def shifts(attribute: str, latents: Array, now: Numbers, to: Numbers) -> Array:
        found = np.empty_like(latents)
        for value in np.unique(to):
            rows = to == value
            found[rows] = learnt.shifts(attribute, int(value), latents[rows])
        return found

    return shifts


def by_effects(learnt: Directions) -> Shifts:
    """Differences of class means, less what other attributes explain: the same for every face."""
    return lambda attribute, _, now, to: learnt.effects[attribute][to] - learnt.effects[attribute][now]


def by_class_means(latents: Array, labels: Labels) -> Shifts:
    """Differences of class means alone."""
    means = {
        name: np.stack([latents[labels[name] == value].mean(0) for value in range(len(values))])
        for name, values in ATTRIBUTE_NAMES.items()
    }
    return lambda attribute, _, now, to: means[attribute][to] - means[attribute][now]


def by_whitened_probes(learnt: Directions, latents: Array) -> Shifts:
    """The smallest move, by the covariance of the latents, that changes one probe and holds all others still."""
    names = list(learnt.weights)
    together = np.concatenate([learnt.weights[name] for name in names])
    covariance = np.cov(latents.T)
    basis = covariance @ together.T @ np.linalg.pinv(together @ covariance @ together.T, rcond=1e-3, hermitian=True)
    starts = dict(zip(names, np.cumsum([0, *(len(learnt.weights[name]) for name in names)]), strict=False))

    def shifts(attribute: str, _: Array, now: Numbers, to: Numbers) -> Array:
        change = np.zeros((len(now), len(together)))
        change[np.arange(len(now)), starts[attribute] + to] += 1
        change[np.arange(len(now)), starts[attribute] + now] -= 1
        return change @ basis.T

    return shifts


# --- judging ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Judge:
    """Faces to edit, and what the classifier sees in their reconstructions."""

    model: VAE
    probe: Probe
    latents: Array
    labels: Labels
    targets: Labels
    before: Labels

    def of(self, shifts: Shifts, attribute: str, strength: float, rows: slice) -> dict[str, Any]:
        """What an edit came to, as parts of the faces.

        Returns:
            reached: have the value asked for, of those that were read right before. changed: are read as another value
            than before. others: mean over the other attributes of the part that is read otherwise than before. worst:
            the other attribute that changed most, and its part.
        """
        latents, now, to = self.latents[rows], self.labels[attribute][rows], self.targets[attribute][rows]
        seen = self.probe.read(decoded(self.model, latents + strength * shifts(attribute, latents, now, to)))
        changed = {name: float((seen[name] != self.before[name][rows]).mean()) for name in ATTRIBUTE_NAMES}
        right = self.before[attribute][rows] == now
        others = {name: part for name, part in changed.items() if name != attribute}
        worst = max(others, key=lambda name: others[name])
        return {
            "strength": strength,
            "reached": float((seen[attribute] == to)[right].mean()) if right.any() else 0.0,
            "changed": changed[attribute],
            "others": statistics.fmean(others.values()),
            "worst": [worst, others[worst]],
            "others_above_target": sum(part > TARGETS["others"] for part in others.values()),
        }


@torch.no_grad()
def decoded(model: VAE, latents: Array) -> Tensor:
    tensor = torch.from_numpy(latents).float()
    return torch.cat([model.decode(some).clamp(0, 1) for some in tensor.split(CHUNK)])


@torch.no_grad()
def encoded(model: VAE, faces: Tensor) -> Array:
    return torch.cat([model.encode(some).mean for some in faces.split(CHUNK)]).double().numpy()


def measured(judge: Judge, shifts: Shifts, choosing: slice, judging: slice) -> dict[str, Any]:
    """Each attribute at the strength that changes it most often on `choosing` with others within the target."""
    found = {}
    for attribute in ATTRIBUTE_NAMES:
        tried = [judge.of(shifts, attribute, strength, choosing) for strength in STRENGTHS]
        allowed = [one for one in tried if one["others"] < TARGETS["others"]] or tried[:1]
        best = max(allowed, key=lambda one: one["reached"] + one["changed"])
        found[attribute] = best if judging == choosing else judge.of(shifts, attribute, best["strength"], judging)
    return found


def met(figures: Mapping[str, Any], which: str) -> list[str]:
    """The attributes that meet both targets."""
    return [
        name for name, one in figures.items() if one[which] > TARGETS["edited"] and one["others"] < TARGETS["others"]
    ]


def main() -> None:
    options = read_options()
    run = options.run or trained(options)
    model = load_model(run, require_data=False).model.eval()
    options.image_size = model.image_size
    probe = trained_probe(options)
    data = images("builtin", model.image_size, options.labelled if options.quick else None)
    assert data.train.labels is not None and data.validation.labels is not None
    labelled = {name: values[: options.labelled] for name, values in data.train.labels.items()}
    latents = encoded(model, pixels(data.train)[: options.labelled])
    learnt = Directions(latents, [Attribute(name, ATTRIBUTE_NAMES[name], each) for name, each in labelled.items()])
    judge = judged(model, probe, pixels(data.validation)[: options.faces], data.validation.labels, options)
    half = options.faces // 2
    choosing, judging = slice(0, half), slice(half, options.faces)
    clean = accuracy(probe, options)
    kept = {name: part for name, part in held(judge).items() if part >= KEPT * clean[name]}
    payload: dict[str, Any] = {"targets": TARGETS, "run": figures_of_model(model, options)}
    if options.methods:
        ways = {
            "effects in context (the verb)": by_verb(learnt),
            "effects": by_effects(learnt),
            "class means": by_class_means(latents, labelled),
            "whitened probes": by_whitened_probes(learnt, latents),
        }
        payload["methods"] = {name: compared(judge, way, choosing, kept) for name, way in ways.items()}
        table(["way", *next(iter(payload["methods"].values()))], [
            [name, *found.values()] for name, found in payload["methods"].items()])  # fmt: skip
        save(options, f"{NAME}-methods", payload)
        return
    figures = measured(judge, by_verb(learnt), choosing, judging)
    tell(figures, clean, held(judge), kept)
    summary = {
        which: {"met": met(figures, which), "met_of_kept": len(set(met(figures, which)) & set(kept))}
        for which in ("reached", "changed")
    }
    save(options, NAME, {
        **payload, "kept_by_the_model": list(kept), "summary": summary,
        "read_off_faces": clean, "read_off_reconstructions": held(judge), "attributes": figures,
    })  # fmt: skip


def trained(options: argparse.Namespace) -> Path:
    settings = {
        "data.source": "builtin", "seed": options.seeds[0], "model.image_size": options.image_size,
        "model.latents": options.latents, "model.base_channels": options.base_channels,
        "training.epochs": options.epochs, "training.batch_size": 64, "training.lr_schedule.kind": "cosine",
        **({"data.max_images": options.labelled} if options.quick else {}), **NOT_ASKED, **overrides(options),
    }  # fmt: skip
    job = Job("faces", settings, {"loss": "mse_l1", "training": "fast_training", "model": "conv_64"}, keep=True)
    train(job, options.work_dir)
    return job.plan(options.work_dir).run_dir


def judged(model: VAE, probe: Probe, faces: Tensor, labels: Labels, options: argparse.Namespace) -> Judge:
    latents = encoded(model, faces)
    own = {name: values[: options.faces] for name, values in labels.items()}
    targets = {}
    for name, values in own.items():
        rng = np.random.default_rng(key(options.seeds[0], "targets", name))
        count = len(ATTRIBUTE_NAMES[name])
        targets[name] = (values + rng.integers(1, count, len(values))) % count
    return Judge(model, probe, latents, own, targets, probe.read(decoded(model, latents)))


def accuracy(probe: Probe, options: argparse.Namespace) -> dict[str, float]:
    faces, labels = drawn(TEST_SEED, 200 if options.quick else 2000, options.image_size)
    seen = probe.read(faces.float() / 255)
    return {name: float((seen[name] == labels[name]).mean()) for name in ATTRIBUTE_NAMES}


def held(judge: Judge) -> dict[str, float]:
    """How well the classifier reads each attribute off reconstructions."""
    return {name: float((judge.before[name] == judge.labels[name]).mean()) for name in ATTRIBUTE_NAMES}


def figures_of_model(model: VAE, options: argparse.Namespace) -> dict[str, Any]:
    return {"image_size": model.image_size, "latents": model.latents, "labelled_faces": options.labelled}


def compared(judge: Judge, shifts: Shifts, rows: slice, kept: Mapping[str, float]) -> dict[str, Any]:
    figures = measured(judge, shifts, rows, rows)
    return {
        "reached > 0.8": len(met(figures, "reached")),
        "changed > 0.8": len(met(figures, "changed")),
        "mean reached": statistics.fmean(one["reached"] for one in figures.values()),
        "of kept": statistics.fmean(figures[name]["reached"] for name in kept) if kept else 0.0,
        "others": statistics.fmean(one["others"] for one in figures.values()),
    }


def tell(
    figures: Mapping[str, Any], clean: Mapping[str, float], held_: Mapping[str, float], kept: Mapping[str, float]
) -> None:
    rows = [
        (name, clean[name], held_[name], one["strength"], one["reached"], one["changed"], one["others"],
         f"{one['worst'][0]} {one['worst'][1]:.2f}")
        for name, one in sorted(figures.items(), key=lambda entry: -entry[1]["reached"])
    ]  # fmt: skip
    table(["", "on faces", "kept", "strength", "reached", "changed", "others", "worst other"], rows)
    for which in ("reached", "changed"):
        found = met(figures, which)
        print(
            f"{which} > {TARGETS['edited']} and others < {TARGETS['others']}: {len(found)} of {len(figures)}, "
            f"{len(set(found) & set(kept))} of the {len(kept)} that the model keeps"
        )


if __name__ == "__main__":
    start(main)
