"""The verb `edit`: learn what attributes are in latent space from labelled images, and change one in others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unified_vae.api.images import batches, picture_files
from unified_vae.api.vae import BATCH, VAE
from unified_vae.core.counter import key, permutation
from unified_vae.core.durable import write_text
from unified_vae.core.errors import ConfigError, DataError
from unified_vae.core.tensor_file import write_tensors
from unified_vae.data.records import Quarantined
from unified_vae.data.sources.layout import is_picture
from unified_vae.experiment.subject.subject import Subject
from unified_vae.experiment.using import attributes as labelled
from unified_vae.experiment.using.attributes import Attribute
from unified_vae.experiment.using.directions import Directions, Score, score
from unified_vae.experiment.using.encode import posterior_of
from unified_vae.experiment.using.identity import fingerprint
from unified_vae.experiment.using.outputs import (
    MOST_ON_A_SHEET,
    refuse_originals,
    refuse_other_suffix,
    report_left_out,
    write_png,
)
from unified_vae.experiment.using.subject_at import subject_at
from unified_vae.experiment.using.whole_set import Rows, WholeSet, open_whole
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import Runtime, open_runtime
from unified_vae.training.sheets import sheet, to_pixels

SHOWN = 8
"""Images on the sheet where none are named."""
LEFT = 16  # pixels before the first column


@dataclass(frozen=True)
class EditRequest:
    """What is asked for.

    Attributes:
        target: a run, a checkpoint or a model's folder.
        images: files and folders to edit; none takes some of the labelled ones.
        labels: a data source with labels (class folders, `builtin`), or a table for the images of `data`.
        data: the images that a table names; None takes those of the run.
        attribute: what to change, e.g. `glasses=round`; None only lists what there is.
        strengths: columns of the sheet: 0 changes nothing, 1 is the attribute in full, below 0 is its opposite.
        sheet: where the pictures go.
        directions: where the directions of all attributes go, a .safetensors; a .json is written beside it.
        at_most: labelled images to learn from.
        checkpoint: of a run; None takes the best there is.
        device: auto, cpu, ...; None as the run had it.
    """

    target: Path
    images: Sequence[Path]
    labels: str
    data: str | None = None
    attribute: str | None = None
    strengths: Sequence[float] = (-3, -2, -1, 0, 1, 2, 3)
    sheet: Path = Path("edit.png")
    directions: Path = Path("directions.safetensors")
    at_most: int = 10_000
    checkpoint: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Edited:
    """What was learnt, and what was written.

    Attributes:
        rows: (what may be asked for, images that have it, how well its probe tells it from the rest, in words).
        files: written ones; none for a list.
        problem: names the images that could not be used and are not on the sheet; empty where there is none.
    """

    rows: Sequence[tuple[str, str, str]]
    files: Sequence[Path]
    learnt_from: int
    problem: str = ""


@dataclass(frozen=True)
class Learnt:
    """Directions, with the attributes they are of and how well their probes do on images kept out."""

    directions: Directions
    attributes: Sequence[Attribute]
    scores: dict[str, Score | None]
    images: int


def edit(request: EditRequest, observer: Observer) -> Edited:
    """Learn, write the directions, draw the sheet; or only list the attributes.

    Raises:
        UserError: no such model, labels, images or attribute.
    """
    refuse_other_suffix(request.sheet, (".png",), "--sheet")
    refuse_other_suffix(request.directions, (".safetensors",), "--directions")
    files = picture_files(list(request.images))
    refuse_originals(_written(request), [*files, *_learnt_from(request)])
    subject = subject_at(request.target, request.checkpoint, request.data, observer)
    refuse_originals(_written(request), _inside(Path(subject.config.data.source), request))
    with open_runtime(request.device or subject.config.device, "fp32") as runtime:
        images, attributes = _labelled(request, subject, observer)
        if request.attribute is not None:
            labelled.chosen(attributes, request.attribute)  # a wrong word is told before the work
        subject.model.to(runtime.device).eval()
        shown, problem = None, ""
        if request.attribute is not None and files:
            shown, problem = _named(_on_the_sheet(files, request, observer), subject, runtime, observer)
        learnt = learn(subject, images, attributes, request.at_most, runtime, observer)
        if request.attribute is None:
            return Edited(_rows(learnt, learnt.attributes), [], learnt.images)
        rows = _rows(learnt, [labelled.chosen(learnt.attributes, request.attribute)[0]])
        _warn_of_noise(learnt, request.attribute, observer)
        written = write_directions(request.directions, learnt, subject)
        shown = _held_out(images, runtime) if shown is None else shown
        picture = _sheet(subject, learnt, shown, request, runtime)
    return Edited(rows, [write_png(picture, request.sheet), *written], learnt.images, problem)


# --- learning --------------------------------------------------------------------------------------------


def learn(
    subject: Subject,
    images: WholeSet,
    attributes: Sequence[Attribute],
    at_most: int,
    runtime: Runtime,
    observer: Observer,
) -> Learnt:
    """Directions from images of the training side, judged by those of the validation side."""
    known = np.any([attribute.numbers >= 0 for attribute in attributes], axis=0)
    train, held_out = (np.flatnonzero(known & (images.sides == side)) for side in (0, 1))
    train = train[np.sort(permutation(key(0, "images of directions"), len(train))[:at_most])]
    held_out = held_out[: max(at_most // 4, 1)]
    if len(train) < 2 * labelled.FEWEST:
        raise DataError(f"{len(train):,} images to learn from have labels: {2 * labelled.FEWEST} are needed")
    seen, other = (means(subject, images, rows, runtime, observer) for rows in (train, held_out))
    own = [Attribute(each.name, each.values, each.numbers[train]) for each in attributes]
    if all(each.is_dead for each in own):
        raise DataError("all images have the same labels: there is nothing to tell apart")
    directions = Directions(seen, own)
    kept_out = [Attribute(each.name, each.values, each.numbers[held_out]) for each in attributes]
    scores = {each.name: score(directions, other, each) for each in kept_out if each.name in directions.effects}
    return Learnt(directions, own, scores, len(train))


def means(
    subject: Subject, images: WholeSet, rows: npt.NDArray[np.int64], runtime: Runtime, observer: Observer
) -> npt.NDArray[np.float64]:
    """Means of the posteriors of some images: [n, latents]."""
    found = np.empty((len(rows), subject.model.latents))
    with Rows(images) as reader:
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            found[start : start + len(some)] = posterior_of(subject.model, reader.take(some), runtime).mean.cpu()
            observer.phase("encoding labelled images", start + len(some), len(rows))
    return found


def _written(request: EditRequest) -> list[Path]:
    if request.attribute is None:
        return []
    return [request.sheet, request.directions, request.directions.with_suffix(".json")]


def _learnt_from(request: EditRequest) -> list[Path]:
    """The files that labels and their images are in, as far as they could be written over."""
    sources = [Path(text) for text in (request.labels, request.data) if text is not None]
    return [*sources, *(path for source in sources for path in _inside(source, request))]


def _inside(source: Path, request: EditRequest) -> list[Path]:
    """The pictures of a folder of images which would be written over."""
    if not source.is_dir():
        return []
    there = [path for path in _written(request) if is_picture(path.name) and path.is_file()]
    return [path for path in there if path.resolve().is_relative_to(source.resolve())]


def _labelled(request: EditRequest, subject: Subject, observer: Observer) -> tuple[WholeSet, list[Attribute]]:
    if labelled.is_table(request.labels):
        images = open_whole(subject, request.data, observer)
        return images, labelled.of_table(Path(request.labels), images.ids)
    if request.data is not None:
        raise ConfigError("--data names the images of a table, and --labels is a data source: leave --data out")
    images = open_whole(subject, request.labels, observer)
    if not images.labels:
        raise DataError(
            f"{request.labels} has no labels: put the images of each class into a folder of its own, or give a table "
            "(.csv) with --labels and its images with --data"
        )
    return images, labelled.of_labels(images.labels, images.label_names)


def _rows(learnt: Learnt, attributes: Sequence[Attribute]) -> list[tuple[str, str, str]]:
    rows = []
    for attribute in attributes:
        told = learnt.scores.get(attribute.name)
        counts = attribute.counts()
        for word, value in labelled.choices(attribute).items():
            rows.append((word, f"{counts[value]:,}", _words(attribute, value, told)))
    return rows


def _words(attribute: Attribute, value: int, told: Score | None) -> str:
    if attribute.is_dead:
        return "cannot be learnt: too few images differ in it"
    if told is None:
        return "no labelled image was kept out"
    having, found = told.having[value], told.told_apart[value]
    kept_out = f"{having:,} with it and {told.images - having:,} without, kept out"
    return f"no figure: {kept_out}" if found is None else f"{found:.1%} of pairs ({kept_out})"


def _warn_of_noise(learnt: Learnt, word: str, observer: Observer) -> None:
    attribute, value = labelled.chosen(learnt.attributes, word)
    told = learnt.scores.get(attribute.name)
    if told is not None and told.may_be_chance(value):
        name = next(choice for choice, number in labelled.choices(attribute).items() if number == value)
        observer.notice(
            f"the direction may be noise: a linear probe of the latents tells {name} from the rest in "
            f"{_words(attribute, value, told)}, and guessing in half of them"
        )


def write_directions(path: Path, learnt: Learnt, subject: Subject) -> list[Path]:
    """The directions by word, [latents] each, and what is known of them."""
    named = learnt.directions.named(learnt.attributes)
    about = {
        "format": 1,
        "model": {"name": subject.name, "fingerprint": fingerprint(subject.model)},
        "use": "latents + strength * direction: strength 1 goes from the mean of the other values to this one. The "
        "sheet takes into account what else is in each image; these are means over images",
        "learnt_from": learnt.images,
        "attributes": {
            name: {"values": list(values), "kept_out": (told := learnt.scores.get(name)) and asdict(told)}
            for name, values in learnt.directions.values.items()
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {word: torch.from_numpy(values).float() for word, values in named.items()})
    write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return [path, path.with_suffix(".json")]


# --- editing ---------------------------------------------------------------------------------------------


def _on_the_sheet(files: Sequence[Path], request: EditRequest, observer: Observer) -> Sequence[Path]:
    """As many of the files as a sheet has rows for."""
    rows = max(1, MOST_ON_A_SHEET // (1 + len(request.strengths)))
    if len(files) > rows:
        observer.notice(f"the sheet shows the first {rows:,} of {len(files):,} images: give fewer to see the others")
    return files[:rows]


def _named(files: Sequence[Path], subject: Subject, runtime: Runtime, observer: Observer) -> tuple[Tensor, str]:
    """Those of the files that can be used: [n, channels, size, size] in [0, 1]; a sentence names the others."""
    vae = VAE(subject.model, subject.config.model, background=subject.config.data.background)
    left_out = list[Quarantined]()
    found = list(batches(list(files), vae.form, BATCH, runtime.device, left_out, skip_named=True))
    return torch.cat([batch.images for batch in found]), report_left_out(left_out, len(files), observer)


def _held_out(images: WholeSet, runtime: Runtime) -> Tensor:
    """The first images of the validation side, where none are named: [n, channels, size, size] in [0, 1]."""
    held_out = np.flatnonzero(images.sides == 1)[:SHOWN]
    with Rows(images) as reader:
        pixels = torch.from_numpy(reader.take(held_out))
    return pixels.to(runtime.device).permute(0, 3, 1, 2).contiguous().float() / 255


@torch.no_grad()
def edited(
    subject: Subject, learnt: Learnt, images: Tensor, word: str, strengths: Sequence[float], runtime: Runtime
) -> Tensor:
    """Each image at each strength: [n, strengths, channels, size, size] in [0, 1]."""
    attribute, value = labelled.chosen(learnt.attributes, word)
    latents = torch.cat([subject.model.encode(some).mean for some in images.split(BATCH)])
    shifts = learnt.directions.shifts(attribute.name, value, latents.double().cpu().numpy())
    moved = latents[:, None] + torch.tensor(strengths)[None, :, None].to(latents) * torch.from_numpy(shifts)[
        :, None
    ].to(latents)
    pictures = [subject.model.decode(some).clamp(0, 1) for some in moved.flatten(0, 1).split(BATCH)]
    return torch.cat(pictures).unflatten(0, (len(images), len(strengths)))


def _sheet(subject: Subject, learnt: Learnt, images: Tensor, request: EditRequest, runtime: Runtime) -> Image.Image:
    """A row an image: as it is, then at each strength."""
    assert request.attribute is not None
    found = edited(subject, learnt, images, request.attribute, request.strengths, runtime)
    pictures = to_pixels(torch.cat([images[:, None], found], dim=1).flatten(0, 1))
    columns = 1 + len(request.strengths)
    drawn = sheet(pictures, columns, f"{request.attribute}: the image, then its reconstruction at each strength")
    return _with_heads(drawn, ["image", *(f"{strength:+g}" if strength else "0" for strength in request.strengths)])


def _with_heads(drawn: Image.Image, heads: Sequence[str]) -> Image.Image:
    """A line of the columns' names below the sheet."""
    canvas = Image.new("RGB", (drawn.width, drawn.height + LEFT), "white")
    canvas.paste(drawn)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, head in enumerate(heads):
        centre = (number + 0.5) * drawn.width / len(heads)
        pen.text((centre, drawn.height), head, fill="black", font=font, anchor="ma")
    return canvas
