"""Open the images of a run: from the cache, or scan the source, split, decode and pack it first.

The split follows from the SHA-256 of a file's bytes. So it does not change when files are added, removed or
renamed, and copies of one image are never in both splits.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError
from unified_vae.data.cache import PackContents, PackItem, PackWriter, Row, cache_root, discard, disk_errors, sweep
from unified_vae.data.cartoon import builtin
from unified_vae.data.dataset import FORMAT_VERSION, DamagedPack, DataSets, Inventory, Pack, read_pack
from unified_vae.data.decode import Header, PixelFormat, decode, map_images, parse_color, quiet_pillow, read_header
from unified_vae.data.sources.base import SPLITS, BadImage, Listing, Progress, Quarantined, RawImage, Source, Split
from unified_vae.data.sources.find import BUILTIN, find_source

MIN_VALIDATION_IMAGES = 64
"""`max_images` keeps at least this many validation images: fewer would make a noisy metric."""


def open_data(config: DataConfig, image_size: int, channels: int | None, progress: Progress) -> DataSets:
    """Return the training and validation images at the run's size.

    Args:
        image_size: pixels on a side; images are resized to cover and center-cropped, never squashed.
        channels: 1, 3, or None to follow the data: 1 where every image is gray.
        progress: called with (what, done, total) while images are read.

    Raises:
        DataError: no such source, no usable images, or too many that cannot be used.
        EnvironmentProblem: the cache cannot be written, the disk is too small, a package is missing.
    """
    # The folder of the pack is named after everything that decides what is in it
    root = cache_root(config.cache_dir)
    source = None if config.source == BUILTIN else find_source(config.source, root, progress)
    identity = builtin.identity() if source is None else source.identity()
    background = parse_color(config.background)
    key = (FORMAT_VERSION, identity, image_size, channels, background, config.max_images, config.validation_fraction)
    target = root / hashlib.sha256(repr(key).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    # A damaged pack is made again
    remarks = []
    try:
        pack = read_pack(target)
    except DamagedPack as damage:
        remarks.append(f"The packed images in the cache were damaged ({damage}) and were made again.")
        with contextlib.suppress(FileNotFoundError), disk_errors(root):
            discard(target)
        pack = None
    if pack is None:
        with disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            sweep(root)
        form = PixelFormat(image_size, channels or 3, background)
        if source is None:
            pack = pack_builtin(root, target, config, form, progress)
        else:
            pack = pack_source(source, root, target, config, form, channels, progress)

    facts = pack.manifest
    quarantined = [Quarantined(name, reason) for name, reason in facts["quarantined"]]
    check_bad_fraction(
        facts["name"], quarantined, facts["examined"], facts["refused"], facts["listed"], config.max_bad_fraction
    )
    return DataSets(
        train=pack.split("train"),
        validation=pack.split("validation"),
        channels=int(facts["channels"]),
        description=facts["description"],
        fingerprint=facts["fingerprint"],
        quarantined=quarantined,
        notes=[*remarks, *facts["notes"]],
        inventory=Inventory.from_manifest(facts),
    )


def pack_builtin(root: Path, target: Path, config: DataConfig, form: PixelFormat, progress: Progress) -> Pack:
    """Draw the built-in set and pack it."""
    contents = builtin.contents(form.size, form.channels, split_limits(config.max_images))
    train, validation = len(contents.items["train"]), len(contents.items["validation"])
    with PackWriter(root, contents) as writer:
        writer.write(builtin.rows(contents), progress)
        return writer.commit(
            target,
            {
                "name": builtin.NAME,
                "description": f"{builtin.NAME}, drawn by this program: {train:,} to train, "
                f"{validation:,} to validate (--data takes your own)",
                "fingerprint": _fingerprint(contents, form),
                "quarantined": [],
                "notes": [],
                "examined": contents.count,
                "refused": 0,
                "listed": contents.count,
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
    """Scan, split, decode and pack a source.

    Where damage found in decoding empties a split, this is done again without those files.

    Args:
        form: its channels count where `channels` is given.
        channels: 1, 3, or None to follow the images.
    """
    with quiet_pillow():
        result = scan(source, config.max_images, config.validation_fraction, progress)
        while True:
            _check_usable(source, result, config)

            # Neither split may be empty
            given = result.candidates
            splits, note = fill_empty_split([c.split for c in given], [c.content for c in given])
            candidates = [replace(c, split=split) for c, split in zip(given, splits, strict=True)]
            if channels is None:
                gray = all(candidate.header.gray for candidate in candidates)
                form = PixelFormat(form.size, 1 if gray else 3, form.background)

            # Decode in the order of the source; each image goes to its place in the pack
            contents, places = _plan_contents(candidates, result.listing.label_names, form)
            with PackWriter(root, contents) as writer:
                writer.write(_decode_rows(source, contents, places, form), progress)
                bad_names = {bad.name for bad in writer.quarantined}
                result.candidates = [candidate for candidate in candidates if candidate.name not in bad_names]
                result.quarantined.extend(writer.quarantined)
                if min(writer.counts().values()) == 0:
                    continue
                _check_usable(source, result, config)

                # What the manifest says beside the images themselves
                listing, kept = result.listing, result.candidates
                counts = {split: sum(c.split == split for c in kept) for split in SPLITS}
                origin = f"split by content, {config.validation_fraction:.0%} to validate"
                final, _ = _plan_contents(kept, listing.label_names, form)
                facts = {
                    "name": source.name,
                    "description": f"{len(kept):,} images from {source.name} ({counts['train']:,} to train, "
                    f"{counts['validation']:,} to validate; {'its own split' if result.has_own_split else origin})",
                    "fingerprint": _fingerprint(final, form),
                    "quarantined": [[bad.name, bad.reason] for bad in result.quarantined],
                    "notes": [*listing.notes, *([note] if note else []), *_remarks(result, form.size)],
                    "examined": result.examined,
                    "refused": len(listing.quarantined),
                    "listed": len(listing.records),
                }
                return writer.commit(target, facts)


# --- scan ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """An image whose header could be read.

    Attributes:
        position: its number in the source.
        content: SHA-256 of its bytes, hexadecimal.
    """

    position: int
    name: str
    content: str
    split: Split
    labels: Mapping[str, int]
    header: Header


@dataclass
class ScanResult:
    """The candidates that are used, and what had to be left out."""

    listing: Listing
    candidates: list[Candidate] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    examined: int = 0

    @property
    def has_own_split(self) -> bool:
        """Whether the source itself says which images are for validation."""
        return any(record.split == "validation" for record in self.listing.records)


def content_hash(raw: RawImage) -> str:
    """Return the SHA-256 of a file's bytes, or of an array's or image's shape and values."""
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    values = np.asarray(raw)
    return hashlib.sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes()).hexdigest()


def scan(source: Source, max_images: int | None, validation_fraction: float, progress: Progress) -> ScanResult:
    """Hash each image, read its header and assign its split, until both splits are full or all images were seen.

    With `max_images` only as many files are opened as it takes to fill both splits.
    """
    listing = source.listing()
    records = listing.records
    result = ScanResult(listing, quarantined=list(listing.quarantined))
    own_split = result.has_own_split
    remaining = {split: math.inf if limit is None else limit for split, limit in split_limits(max_images).items()}
    waiting = list(range(len(records)))
    if max_images is not None:
        waiting = subset_order([record.name for record in records])
    while waiting:
        # The positions to open next, about as many as fill what remains
        train, validation = remaining["train"], remaining["validation"]
        either = max(train / (1 - validation_fraction), validation / validation_fraction)
        budget: dict[Split | None, float] = {
            "train": train,
            "validation": validation,
            None: either * 1.1 + 16 if either else 0,
        }
        batch: list[int] = []
        rest: list[int] = []
        for position in waiting:
            split = records[position].split if own_split else None
            (batch if budget[split] > 0 else rest).append(position)
            budget[split] -= 1
        waiting = rest
        if not batch:
            break

        # Open them in the order of the source
        positions = sorted(batch)
        loaders = source.read(positions)
        seen: dict[int, tuple[str, Header] | BadImage] = {}
        for position, look in zip(
            positions, map_images(lambda raw: (content_hash(raw), read_header(raw)), loaders), strict=True
        ):
            seen[position] = look
            if len(seen) % 64 == 0 or len(seen) == len(positions):
                progress("looking at images", len(seen), len(positions))
        result.examined += len(positions)

        # Admit them in the order of the subset
        for position in batch:
            record, look = records[position], seen[position]
            if isinstance(look, BadImage):
                result.quarantined.append(Quarantined(record.name, str(look)))
                continue
            content, header = look
            split = (record.split if own_split else None) or split_of(content, validation_fraction)
            if remaining[split] > 0:
                remaining[split] -= 1
                result.candidates.append(Candidate(position, record.name, content, split, record.labels, header))
    return result


def check_bad_fraction(
    name: str, quarantined: Sequence[Quarantined], examined: int, refused: int, listed: int, limit: float
) -> None:
    """Raise DataError where too many files cannot be used, naming the first few.

    Args:
        examined: files that were opened.
        refused: files that were rejected unopened.
        listed: the others, opened or not.
    """
    opened_bad = len(quarantined) - refused
    fraction = max(opened_bad / max(examined, 1), refused / max(listed + refused, 1))
    if fraction > limit:
        first = "; ".join(bad.format_line() for bad in quarantined[:3])
        raise DataError(
            f"{len(quarantined):,} files of {name} are unusable ({fraction:.0%}; the limit is {limit:.0%}): "
            f"{first}; fix or remove them, or raise data.max_bad_fraction."
        )


def _check_usable(source: Source, result: ScanResult, config: DataConfig) -> None:
    listing, bad = result.listing, result.quarantined
    refused, listed = len(listing.quarantined), len(listing.records)
    check_bad_fraction(source.name, bad, result.examined, refused, listed, config.max_bad_fraction)
    if len(result.candidates) < 2:
        first = "".join(f" ({entry.format_line()})" for entry in bad[:1])
        count = "no usable image" if not result.candidates else "only one usable image"
        notes = "".join(f" {note}" for note in listing.notes)
        raise DataError(
            f"{source.name} has {count}{first}, and training and validation need one each.{notes} "
            "Check that --data names the right place, or try --data builtin."
        )


def _remarks(result: ScanResult, size: int) -> Iterator[str]:
    """What the user should know about the images that are used."""
    if result.quarantined:
        count, first = len(result.quarantined), result.quarantined[0].format_line()
        yield f"{count:,} files could not be used, e.g. {first}."
    small = sum(min(c.header.width, c.header.height) < size for c in result.candidates)
    if small:
        yield f"{small:,} images are smaller than {size} pixels and were enlarged."
    content = {split: {c.content for c in result.candidates if c.split == split} for split in SPLITS}
    both = len(content["train"] & content["validation"])
    if both:
        yield f"{both:,} images are in both training and validation: the metrics will flatter the model."


# --- split -----------------------------------------------------------------------------------------------


def split_of(content_sha256: str, validation_fraction: float) -> Split:
    """Return validation where the hash, read as a number in [0, 1), is below the fraction."""
    return "validation" if int(content_sha256[:16], 16) / 2**64 < validation_fraction else "train"


def split_limits(max_images: int | None) -> dict[Split, int | None]:
    """Return the most images of each split; None is no limit."""
    if max_images is None:
        return {"train": None, "validation": None}
    return {"train": max_images, "validation": max(MIN_VALIDATION_IMAGES, max_images // 10)}


def subset_order(names: Sequence[str]) -> list[int]:
    """Return the order in which a subset is filled: by the hash of the name, so that it is fair and stays."""
    hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    return sorted(range(len(names)), key=lambda index: (hashes[index], names[index]))


def fill_empty_split(splits: Sequence[Split], content_sha256: Sequence[str]) -> tuple[list[Split], str | None]:
    """Make sure that both splits have an image, for sets so small that the hash left one empty.

    The content with the smallest hash moves, with all its copies; where all images are copies of one
    another, the first one alone moves.

    Returns:
        The splits, and a line for the user where something moved.
    """
    present = set(splits)
    if len(present) == 2 or len(splits) < 2:
        return list(splits), None
    empty: Split = "validation" if "train" in present else "train"
    smallest = min(content_sha256)
    moving = [index for index, content in enumerate(content_sha256) if content == smallest]
    if len(moving) == len(splits):
        moving = moving[:1]
    result = [empty if index in moving else split for index, split in enumerate(splits)]
    return result, (
        f"The set is so small that the split left no {empty} image; {len(moving)} of {len(splits)} was moved there."
    )


# --- decode ----------------------------------------------------------------------------------------------


def _plan_contents(
    candidates: Sequence[Candidate], label_names: Mapping[str, list[str]], form: PixelFormat
) -> tuple[PackContents, dict[int, tuple[Split, int]]]:
    """Both splits in the order of their content hashes (mixed, the same after renaming); where each position goes."""
    items: dict[Split, list[PackItem]] = {split: [] for split in SPLITS}
    places: dict[int, tuple[Split, int]] = {}
    for candidate in sorted(candidates, key=lambda c: (c.content, c.name, c.position)):
        places[candidate.position] = (candidate.split, len(items[candidate.split]))
        items[candidate.split].append(PackItem(candidate.name, candidate.content, candidate.labels))
    return PackContents(form.size, form.channels, items, label_names), places


def _decode_rows(
    source: Source, contents: PackContents, places: Mapping[int, tuple[Split, int]], form: PixelFormat
) -> Iterator[Row]:
    def load_unchanged(load: Callable[[], RawImage], content: str) -> RawImage:
        """Load an image as it was scanned: its split and its place in the order follow from what it was then."""
        raw = load()
        if content_hash(raw) != content:
            raise BadImage("changed while the images were packed; it is used from the next start on")
        return raw

    positions = sorted(places)
    targets = [places[position] for position in positions]
    loaders = (
        partial(load_unchanged, load, contents.items[split][index].content)
        for load, (split, index) in zip(source.read(positions), targets, strict=True)
    )
    for (split, index), pixels in zip(targets, map_images(lambda raw: decode(raw, form), loaders), strict=True):
        yield split, index, pixels


def _fingerprint(contents: PackContents, form: PixelFormat) -> str:
    digest = hashlib.sha256(f"{form.size} {form.channels} {form.background}\n".encode())
    for split in SPLITS:
        digest.update(f"{split}\n".encode())
        for item in contents.items[split]:
            digest.update(item.content.encode() + b"\n")
    return digest.hexdigest()
