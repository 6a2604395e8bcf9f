"""Does any shipped objective collapse? Every loss preset with every model preset, at the shipped beta.

Short runs of narrow networks at each preset's real image size and latents. A run counts as collapsed when fewer than
half of its units are active. There are more training images than latents, since a few could not keep many units busy.
`control` runs have a beta that no one would choose: they must collapse, or the runs are too short to show anything.
Models of larger images get fewer seeds, so that each size takes about as long.
Parts (--models, --sets, --losses) merge into one result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from runs import NOT_ASKED, Job, images, train_all
from script import earlier, overrides, parser, result_name, save, settle, source, start, table
from unified_vae.config.model import ConvConfig, ModelConfig, ResidualConfig, SpatialConfig
from unified_vae.config.presets import PresetBook
from unified_vae.config.upgrade import upgrade_part

NAME = "collapse"
CONTROL, CONTROL_BETA = "control", 1e6
SPARE_IMAGES = 100
BOOK = PresetBook.load()
MODELS: dict[str, ConvConfig | ResidualConfig | SpatialConfig] = {
    name: TypeAdapter(ModelConfig).validate_python({"family": "conv", **preset.settings.values["model"]})
    for name, preset in BOOK.presets("model").items()
}
SIZES = {name: model.image_size for name, model in MODELS.items()}


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    options.add_argument("--losses", nargs="+", choices=[*BOOK.presets("loss"), CONTROL])
    options.add_argument("--sets", nargs="+", default=["cifar10", "faces128", "fashion_mnist"])
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--images", type=int, help=f"training images; default {SPARE_IMAGES} more than latents")
    options.add_argument("--batch-size", type=int, default=4)
    options.add_argument("--base-channels", type=int, default=8)
    given = settle(options.parse_args())
    given.losses = given.losses or [*BOOK.presets("loss"), CONTROL]
    if given.quick:
        given.models, given.losses, given.sets, given.steps = ["small"], ["mse_l1", CONTROL], given.sets[:1], 4
    return given


def seeds(options: argparse.Namespace, size: int) -> list[int]:
    """All of them at 64 px; of larger images as many as take the same time, one at least."""
    return options.seeds[: max(1, len(options.seeds) * 64**2 // size**2)]


def training_images(options: argparse.Namespace, model: str) -> int:
    """More than latents of a vector; a map's positions share theirs, so each image has many examples of them."""
    return options.images or MODELS[model].latents // MODELS[model].positions + SPARE_IMAGES


def jobs(options: argparse.Namespace) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Each run, and what names it in the result."""
    for model in options.models:
        for name in options.sets:
            for loss in options.losses:
                for seed in seeds(options, SIZES[model]):
                    about = {"model": model, "set": name, "loss": loss, "seed": seed}
                    yield Job(", ".join(map(str, about.values())), _settings(options, about), _presets(about)), about


def _presets(about: dict[str, Any]) -> dict[str, str]:
    return {"model": about["model"], "loss": "mse_only" if about["loss"] == CONTROL else about["loss"]}


def _settings(options: argparse.Namespace, about: dict[str, Any]) -> dict[str, object]:
    control = {"loss.kl.weight": CONTROL_BETA, "loss.kl.schedule.kind": "constant"}
    return {
        "data.source": source(options, about["set"]),
        "data.max_images": training_images(options, about["model"]),
        "seed": about["seed"],
        "model.base_channels": options.base_channels,
        "training.max_steps": options.steps,
        "training.epochs": options.steps,
        "training.validate_every_epochs": options.steps,  # once, at the end
        "training.batch_size": options.batch_size,
        **NOT_ASKED,
        **(control if about["loss"] == CONTROL else {}),
        **overrides(options),
    }


def merged(options: argparse.Namespace, settings: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, and those of an earlier result of the same settings which they do not replace.

    A row is of the network that its preset named then: where that is another one now, or gone, the row says nothing.
    """
    before = earlier(options, NAME)
    if before and before["runs_have"] != settings:
        print(f"{result_name(options, NAME)}.json has runs of other settings; they are left out of the new result")
        return rows
    of_today = [
        row
        for row in before.get("runs", [])
        if upgrade_part("model", row.get("network") or {}) == network(row["model"])
    ]
    known = {_key(row): row for row in of_today}
    return list((known | {_key(row): row for row in rows}).values())


def network(model: str) -> dict[str, Any] | None:
    """The settings of a model preset, None of one that there is not."""
    return MODELS[model].model_dump() if model in MODELS else None


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["model"], row["set"], row["loss"], row["seed"]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of collapsed runs, of the presets and of the controls, and by model."""

    def count(some: list[dict[str, Any]]) -> dict[str, int]:
        return {"runs": len(some), "collapsed": sum(2 * row["active_units"] < row["latents"] for row in some)}

    presets = [row for row in rows if row["loss"] != CONTROL]
    by_model = {model: count([row for row in presets if row["model"] == model]) for model in SIZES}
    controls = count([row for row in rows if row["loss"] == CONTROL])
    return {"presets": count(presets), "controls": controls, "presets_by_model": by_model}


def keep(options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Save what there is so far, so that a stopped benchmark keeps its figures; returns their summary."""
    settings = {
        "steps": options.steps,
        "images": options.images or f"latents + {SPARE_IMAGES}",
        "batch_size": options.batch_size,
        "base_channels": options.base_channels,
        "set": options.set,
    }
    rows = merged(options, settings, rows)
    counts = summary(rows)
    save(options, NAME, {"runs_have": settings, "summary": counts, "runs": rows})
    return counts


def main() -> None:
    options = read_options()
    for model in options.models:
        for name in options.sets:  # packed once, not by each process
            images(source(options, name), SIZES[model], training_images(options, model))
    planned = list(jobs(options))
    about = {job.name: entry for job, entry in planned}
    rows: list[dict[str, Any]] = []
    for job, found in train_all([job for job, _ in planned], options.work_dir, options.processes, options.threads):
        rows.append(about[job.name] | {"network": network(about[job.name]["model"])} | found)
        print(
            f"{len(rows)}/{len(planned)} {job.name}: {found['active_units']} of {found['latents']} active", flush=True
        )
        counts = keep(options, rows)
    table(["model", "runs", "collapsed"], [[k, *v.values()] for k, v in counts["presets_by_model"].items()])
    print(f"\npresets: {counts['presets']}, controls: {counts['controls']}")


if __name__ == "__main__":
    start(main)
