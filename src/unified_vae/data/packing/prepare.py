"""From a source to a finished pack: survey, plan, decode, commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError
from unified_vae.data import builtin
from unified_vae.data.packing.decode import PixelFormat, decode, quiet_pillow
from unified_vae.data.packing.pack import Item, Plan, Row, Staged
from unified_vae.data.packing.packed import SIDES, Pack
from unified_vae.data.packing.pool import map_images
from unified_vae.data.packing.split import give_to_empty_side
from unified_vae.data.packing.survey import Candidate, Survey, check_bad_fraction, content_hash, survey
from unified_vae.data.records import BadImage, Progress, Quarantined, RawImage, Side, Source


def pack_builtin(root: Path, target: Path, config: DataConfig, form: PixelFormat, progress: Progress) -> Pack:
    plan = builtin.plan(form.size, form.channels, config.max_images)
    train, validation = len(plan.items["train"]), len(plan.items["validation"])
    with Staged(root, plan) as staged:
        staged.write(builtin.rows(plan), progress)
        return staged.commit(
            target,
            {
                "name": builtin.NAME,
                "description": f"{builtin.NAME}, drawn by this program: {train:,} to train, "
                f"{validation:,} to validate (--data takes your own)",
                "fingerprint": _fingerprint(plan, form),
                "quarantined": [],
                "notes": [],
                "examined": plan.count,
                "refused": 0,
                "listed": plan.count,
            },
        )


def pack_source(
    source: Source,
    root: Path,
    target: Path,
    config: DataConfig,
    form: PixelFormat,
    channels: int | None,
    progress: Progress,
) -> Pack:
    """Survey, plan, decode. Where damage found in decoding empties a side, plan again without those files."""
    with quiet_pillow():
        found = survey(source, config.max_images, config.validation_fraction, progress)
        while True:
            _check_usable(source, found, config)
            candidates, notes = _with_both_sides(found)
            if channels is None:
                grey = all(candidate.header.grey for candidate in candidates)
                form = PixelFormat(form.size, 1 if grey else 3, form.background)
            plan, places = _plan(candidates, found, form)
            with Staged(root, plan) as staged:
                staged.write(_decoded(source, plan, places, form), progress)
                _drop(found, candidates, staged.quarantined)
                if min(staged.counts().values()) > 0:
                    _check_usable(source, found, config)
                    facts = _facts(source, found, config, form, notes)
                    return staged.commit(target, facts)


def _check_usable(source: Source, found: Survey, config: DataConfig) -> None:
    listing = found.listing
    check_bad_fraction(
        source.name,
        found.quarantined,
        found.examined,
        len(listing.quarantined),
        len(listing.records),
        config.max_bad_fraction,
    )
    if len(found.candidates) >= 2:
        return
    first = "".join(f" ({bad.told()})" for bad in found.quarantined[:1])
    count = "no usable image" if not found.candidates else "only one usable image"
    notes = "".join(f" {note}" for note in listing.notes)
    raise DataError(
        f"{source.name} has {count}{first}, and training and validation need one each.{notes} "
        "Check that --data names the right place, or try --data builtin."
    )


def _with_both_sides(found: Survey) -> tuple[list[Candidate], list[str]]:
    """The candidates with neither side empty, and a note where one had to be moved."""
    sides, note = give_to_empty_side(
        [candidate.side for candidate in found.candidates],
        [candidate.content for candidate in found.candidates],
    )
    moved = [replace(c, side=side) for c, side in zip(found.candidates, sides, strict=True)]
    return moved, [note] if note else []


def _plan(
    candidates: Sequence[Candidate], found: Survey, form: PixelFormat
) -> tuple[Plan, dict[int, tuple[Side, int]]]:
    """Both sides in the order of their content hashes (mixed, the same after renaming); where each goes."""
    items: dict[Side, list[Item]] = {side: [] for side in SIDES}
    places: dict[int, tuple[Side, int]] = {}
    for candidate in sorted(candidates, key=lambda c: (c.content, c.name, c.position)):
        places[candidate.position] = (candidate.side, len(items[candidate.side]))
        items[candidate.side].append(Item(candidate.name, candidate.content, candidate.labels))
    return Plan(form.size, form.channels, items, found.listing.label_names), places


def _decoded(source: Source, plan: Plan, places: Mapping[int, tuple[Side, int]], form: PixelFormat) -> Iterator[Row]:
    positions = sorted(places)
    surveyed = (plan.items[side][index].content for side, index in map(places.__getitem__, positions))
    loaders = (
        partial(_unchanged, load, content) for load, content in zip(source.read(positions), surveyed, strict=True)
    )
    images = map_images(lambda raw: decode(raw, form), loaders)
    for position, pixels in zip(positions, images, strict=True):
        side, index = places[position]
        yield side, index, pixels


def _unchanged(load: Callable[[], RawImage], content: str) -> RawImage:
    """The image as it was surveyed: its side and its place in the order follow from what it was then."""
    raw = load()
    if content_hash(raw) != content:
        raise BadImage("changed while the images were packed; it is used from the next start on")
    return raw


def _drop(found: Survey, candidates: Sequence[Candidate], bad: Sequence[Quarantined]) -> None:
    """Take the candidates that could not be decoded out of the survey, and keep the rest with their sides."""
    names = {entry.name for entry in bad}
    found.candidates = [candidate for candidate in candidates if candidate.name not in names]
    found.quarantined.extend(bad)


def _facts(
    source: Source, found: Survey, config: DataConfig, form: PixelFormat, notes: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says beside the images themselves."""
    counts = {side: sum(c.side == side for c in found.candidates) for side in SIDES}
    plan, _ = _plan(found.candidates, found, form)
    split = "its own split" if found.own_split else f"split by content, {config.validation_fraction:.0%} to validate"
    return {
        "name": source.name,
        "description": f"{plan.count:,} images from {source.name} "
        f"({counts['train']:,} to train, {counts['validation']:,} to validate; {split})",
        "fingerprint": _fingerprint(plan, form),
        "quarantined": [[bad.name, bad.reason] for bad in found.quarantined],
        "notes": [*found.listing.notes, *notes, *_remarks(found, form.size)],
        "examined": found.examined,
        "refused": len(found.listing.quarantined),
        "listed": len(found.listing.records),
    }


def _remarks(found: Survey, size: int) -> Iterator[str]:
    """What the user should know about the images that are used."""
    if found.quarantined:
        yield f"{len(found.quarantined):,} files could not be used, e.g. {found.quarantined[0].told()}."
    small = sum(min(c.header.width, c.header.height) < size for c in found.candidates)
    if small:
        yield f"{small:,} images are smaller than {size} pixels and were enlarged."
    content = {side: {c.content for c in found.candidates if c.side == side} for side in SIDES}
    both = len(content["train"] & content["validation"])
    if both:
        yield f"{both:,} images are in both training and validation: the figures will flatter the model."


def _fingerprint(plan: Plan, form: PixelFormat) -> str:
    digest = hashlib.sha256(f"{form.size} {form.channels} {form.background}\n".encode())
    for side in SIDES:
        digest.update(f"{side}\n".encode())
        for item in plan.items[side]:
            digest.update(item.content.encode() + b"\n")
    return digest.hexdigest()
