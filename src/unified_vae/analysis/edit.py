"""The command `edit`: learn what attributes are in latent space from labeled images, and change one in others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from unified_vae.analysis.attributes import MIN_IMAGES, Attribute, Directions, Score, choose, is_table, read_table
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.device import ComputeDevice, open_device
from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.events import Observer
from unified_vae.core.files import write_text
from unified_vae.core.rng import key, permutation
from unified_vae.data.sources.base import Quarantined
from unified_vae.data.sources.folder import has_image_extension
from unified_vae.inference.image_grids import MAX_IMAGES, check_outputs, check_suffix, draw_grid, to_pixels, write_png
from unified_vae.inference.image_set import ImageSet, open_image_set
from unified_vae.inference.images import batches, image_files, report_left_out
from unified_vae.inference.latents import encode_pixels, fingerprint
from unified_vae.inference.load import load_model
from unified_vae.inference.model import BATCH, VAE
from unified_vae.models import vae as network

DEFAULT_IMAGES = 8
"""Images on the sheet where none are named."""
LINE_HEIGHT = 16  # pixels of the line with the columns' names


class Edited(NamedTuple):
    """What was learned, and what was written.

    Attributes:
        rows: (what may be asked for, images that have it, how well its probe separates it from the rest, in words).
        files: written ones; none for a list.
        images: labeled ones that it was learned from.
        problem: names the images that could not be used and are not on the sheet; empty where there is none.
    """

    rows: Sequence[tuple[str, str, str]]
    files: Sequence[Path]
    images: int
    problem: str = ""


@torch.no_grad()
def edit(
    target: Path,
    images: Sequence[Path],
    labels: str,
    *,
    data: str | None = None,
    attribute: str | None = None,
    strengths: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3),
    sheet: Path = Path("edit.png"),
    directions: Path = Path("directions.safetensors"),
    max_images: int = 10_000,
    checkpoint: str | None = None,
    device: str | None = None,
    observer: Observer,
) -> Edited:
    """Learn, write the directions, draw the sheet; or only list the attributes.

    Args:
        target: a run, a checkpoint or a model's folder.
        images: files and folders to edit; none takes some of the labeled ones.
        labels: a data source with labels (class folders, `builtin`), or a table for the images of `data`.
        data: the images that a table names; None takes those of the run.
        attribute: what to change, e.g. `glasses=round`; None only lists what there is.
        strengths: columns of the sheet: 0 changes nothing, 1 is the attribute in full, below 0 is its opposite.
        directions: where the directions of all attributes go, a .safetensors; a .json is written beside it.
        max_images: labeled images to learn from.
        checkpoint: of a run; None takes the best there is.
        device: auto, cpu, ...; None as the run had it.

    Raises:
        UserError: no such model, labels, images or attribute.
    """
    # Nothing that is read is written over: the named images, the labels, and the images of a data source.
    check_suffix(directions, (".safetensors",), "--directions")
    about_path = directions.with_suffix(".json")
    written = [] if attribute is None else [sheet, directions, about_path]
    files = image_files(list(images))
    sources = [Path(text) for text in (labels, data) if text is not None]
    check_outputs(sheet, None, written, [*files, *sources, *_inside(sources, written)] if written else [])
    loaded = load_model(target, checkpoint, data=data, require_data=False, on_message=observer.notice)
    check_outputs(None, None, written, _inside([Path(loaded.config.data.source)], written))

    with open_device(device or loaded.config.device, "fp32") as compute:
        # The labeled images; a wrong attribute fails before the work.
        if is_table(labels):
            image_set = open_image_set(loaded, data, observer)
            attributes = read_table(Path(labels), image_set.ids)
        elif data is not None:
            raise ConfigError("--data names the images of a table, and --labels is a data source: leave --data out")
        else:
            image_set = open_image_set(loaded, labels, observer)
            attributes = [Attribute(name, image_set.label_names[name], each) for name, each in image_set.labels.items()]
            if not attributes:
                raise DataError(
                    f"{labels} has no labels: put the images of each class into a folder of its own, or give a table "
                    "(.csv) with --labels and its images with --data"
                )
        if attribute is not None:
            choose(attributes, attribute)
        model = loaded.model.to(compute.device).eval()

        # The images to edit, where they are named: those that cannot be used are left out.
        shown, problem, left_out = None, "", list[Quarantined]()
        if attribute is not None and files:
            most = max(1, MAX_IMAGES // (1 + len(strengths)))
            if len(files) > most:
                observer.notice(f"the sheet shows the first {most:,} of {len(files):,} images: give fewer to see all")
            form = VAE(model, loaded.config.model, background=loaded.config.data.background).form
            read = batches(files[:most], form, BATCH, compute.device, left_out, skip_named=True)
            shown = torch.cat([batch.images for batch in read])
            problem = report_left_out(left_out, len(files[:most]), observer)

        fits, learned, scores = _learn(model, image_set, attributes, max_images, compute, observer)
        count = len(learned[0].numbers)
        rows = {each.name: _rows(each, scores.get(each.name)) for each in learned}
        if attribute is None:
            return Edited([row for each in learned for row in rows[each.name]], [], count)
        chosen, value = choose(learned, attribute)
        score = scores.get(chosen.name)
        if score is not None and score.may_be_chance(value):
            word, _, quality = next(row for row in rows[chosen.name] if chosen.choices()[row[0]] == value)
            observer.notice(
                f"the direction may be noise: a linear probe of the latents separates {word} from the rest in "
                f"{quality}, and guessing in half of them"
            )

        # The directions by word, [latents] each, and what is known of them.
        named = {
            word: torch.from_numpy(fits.direction(each.name, number)).float()
            for each in learned
            if each.name in fits.effects
            for word, number in each.choices().items()
        }
        about = {
            "format": 2,
            "model": {"name": loaded.name, "fingerprint": fingerprint(model)},
            "use": "latents + strength * direction: strength 1 goes from the mean of the other values to this one. The "
            "sheet takes into account what else is in each image; these are means over images",
            "learned_from": count,
            "attributes": {
                name: {"values": list(values), "held_out": (entry := scores.get(name)) and asdict(entry)}
                for name, values in fits.values.items()
            },
        }
        directions.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(directions, named)
        write_text(about_path, json.dumps(about, indent=2) + "\n")

        # The sheet: a row per image, as it is and then at each strength.
        if shown is None:
            pixels = torch.from_numpy(image_set.read(np.flatnonzero(image_set.splits == 1)[:DEFAULT_IMAGES]))
            shown = pixels.to(compute.device).permute(0, 3, 1, 2).contiguous().float() / 255
        means = torch.cat([model.encode(batch).mean for batch in shown.split(BATCH)])
        shifts = torch.from_numpy(fits.shifts(chosen.name, value, means.double().cpu().numpy())).to(means)
        moved = (means[:, None] + torch.tensor(strengths)[None, :, None].to(means) * shifts[:, None]).flatten(0, 1)
        edited = torch.cat([model.decode(batch).clamp(0, 1) for batch in moved.split(BATCH)])
        grid = torch.cat([shown[:, None], edited.unflatten(0, (len(shown), len(strengths)))], dim=1)
        caption = f"{attribute}: the image, then its reconstruction at each strength"
        image = draw_grid(to_pixels(grid.flatten(0, 1)), 1 + len(strengths), caption)
        columns = ["image", *(f"{strength:+g}" if strength else "0" for strength in strengths)]
        write_png(_with_column_names(image, columns), sheet)
    return Edited(rows[chosen.name], written, count, problem)


def _inside(sources: Sequence[Path], written: Sequence[Path]) -> list[Path]:
    """The files of folders of images that would be written over."""
    folders = [source.resolve() for source in sources if source.is_dir()]
    there = [path for path in written if has_image_extension(path.name) and path.is_file()]
    return [path for path in there if any(path.resolve().is_relative_to(folder) for folder in folders)]


def _learn(
    model: network.VAE,
    images: ImageSet,
    attributes: Sequence[Attribute],
    max_images: int,
    compute: ComputeDevice,
    observer: Observer,
) -> tuple[Directions, list[Attribute], dict[str, Score | None]]:
    """Directions from training images, those images' attributes, and scores on the held-out ones."""
    known = np.any([each.numbers >= 0 for each in attributes], axis=0)
    train, held_out = (np.flatnonzero(known & (images.splits == split)) for split in (0, 1))
    train = train[np.sort(permutation(key(0, "images of directions"), len(train))[:max_images])]
    held_out = held_out[: max(max_images // 4, 1)]
    if len(train) < 2 * MIN_IMAGES:
        raise DataError(f"{len(train):,} images to learn from have labels: {2 * MIN_IMAGES} are needed")
    learned = [replace(each, numbers=each.numbers[train]) for each in attributes]
    if all(each.is_dead for each in learned):
        raise DataError("all images have the same labels: there is nothing to tell apart")
    means = []
    for numbers in (train, held_out):
        latents = np.empty((len(numbers), model.latents))
        for start in range(0, len(numbers), BATCH):
            batch = numbers[start : start + BATCH]
            latents[start : start + len(batch)] = encode_pixels(model, images.read(batch), compute).mean.cpu()
            observer.phase("encoding labeled images", start + len(batch), len(numbers))
        means.append(latents)
    fits = Directions(means[0], learned)
    others = [replace(each, numbers=each.numbers[held_out]) for each in attributes if each.name in fits.effects]
    return fits, learned, {each.name: fits.score(means[1], each) for each in others}


def _rows(attribute: Attribute, score: Score | None) -> list[tuple[str, str, str]]:
    """For each choice: what to ask for, images that have it, how well its probe separates it from the rest."""
    rows = []
    for word, value in attribute.choices().items():
        if attribute.is_dead:
            quality = "cannot be learned: too few images differ in it"
        elif score is None:
            quality = "no labeled image was held out"
        else:
            having, auc = score.counts[value], score.auc[value]
            held_out = f"{having:,} with it and {score.images - having:,} without, held out"
            quality = f"no figure: {held_out}" if auc is None else f"{auc:.1%} of pairs ({held_out})"
        rows.append((word, f"{attribute.counts()[value]:,}", quality))
    return rows


def _with_column_names(image: Image.Image, names: Sequence[str]) -> Image.Image:
    """The grid with a line of its columns' names below."""
    canvas = Image.new("RGB", (image.width, image.height + LINE_HEIGHT), "white")
    canvas.paste(image)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, name in enumerate(names):
        center = (number + 0.5) * image.width / len(names)
        pen.text((center, image.height), name, fill="black", font=font, anchor="ma")
    return canvas
