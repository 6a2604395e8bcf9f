"""Open the images of a run: from the cache, or scan the source, split, decode and pack it first.

The split follows from the SHA-256 of a file's bytes, so it does not change when files are added, removed or
renamed. Images of the same pixels in different files go where the one with the smallest hash goes, but for
`data.split_by=bytes`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError, escape_name
from unified_vae.data.cache import PackContents, PackItem, PackWriter, Row, cache_root, discard, disk_errors, sweep
from unified_vae.data.cartoon import builtin
from unified_vae.data.dataset import FORMAT_VERSION, DamagedPack, DataSets, Inventory, Pack, read_pack
from unified_vae.data.decode import (
    Decoded,
    Header,
    PixelFormat,
    decode,
    map_images,
    parse_color,
    parse_range,
    quiet_pillow,
    read_header,
    scale_to_8_bit,
)
from unified_vae.data.sources.base import (
    SPLITS,
    BadImage,
    Listing,
    Loader,
    Progress,
    Quarantined,
    RawImage,
    Source,
    Split,
)
from unified_vae.data.sources.find import BUILTIN, find_source

LOW_PEAK = 0.5  # of white: images that get no brighter were probably stored with fewer bits
NO_PIXELS = np.zeros((0, 0, 0), np.uint8)
MAX_EXACT_SPLIT, MIN_EXACT_VALIDATION = 320, 16
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
    stated = parse_range(config.range)
    key = (
        *(FORMAT_VERSION, identity, image_size, channels, background, config.max_images, config.validation_fraction),
        *(stated, config.split_by == "bytes"),
    )
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
        form = PixelFormat(image_size, channels or 3, background, stated)
        if source is None:
            pack = pack_builtin(target, config, form, progress)
        else:
            pack = pack_source(source, target, config, form, progress, gray_to_one=channels is None)

    facts = pack.manifest
    check_bad_fraction(facts, config.max_bad_fraction)
    return DataSets(
        train=pack.split("train"),
        validation=pack.split("validation"),
        channels=int(facts["channels"]),
        description=facts["description"],
        fingerprint=facts["fingerprint"],
        quarantined=[Quarantined(name, reason) for name, reason in facts["quarantined"]],
        notes=[*remarks, *facts["notes"]],
        inventory=Inventory.from_manifest(facts),
    )


def pack_builtin(target: Path, config: DataConfig, form: PixelFormat, progress: Progress) -> Pack:
    """Draw the built-in set and pack it."""
    contents = builtin.contents(form.size, form.channels, split_limits(config.max_images))
    with PackWriter(target, contents) as writer:
        writer.write(builtin.rows(contents), progress)
        counts = writer.counts()
        description = (
            f"{builtin.NAME}, drawn by this program: {counts['train']:,} to train, {counts['validation']:,} to "
            "validate (--data takes your own)"
        )
        numbers = {"examined": contents.count, "refused": 0, "listed": contents.count}
        facts = {"name": builtin.NAME, "description": description, "quarantined": [], "notes": [], **numbers}
        return writer.commit(form.background, facts)


def pack_source(
    source: Source, target: Path, config: DataConfig, form: PixelFormat, progress: Progress, *, gray_to_one: bool
) -> Pack:
    """Scan, split, decode and pack a source.

    Where damage found in decoding empties a split, this is done again without those files.

    Args:
        gray_to_one: whether one channel is enough where all images are gray.
    """
    with quiet_pillow():
        result = scan(source, config.max_images, config.validation_fraction, progress)
        by_pixels = config.split_by != "bytes" and not result.has_own_split
        if by_pixels and config.max_images is None and 2 <= len(result.candidates) <= MAX_EXACT_SPLIT:
            splits = exact_split([c.content for c in result.candidates], config.validation_fraction)
            result.candidates = [replace(c, split=split) for c, split in zip(result.candidates, splits, strict=True)]
        while True:
            _check_usable(source, result, config)

            # Neither split may be empty
            splits, note = fill_empty_split(
                [candidate.split for candidate in result.candidates],
                [candidate.content for candidate in result.candidates],
            )
            candidates = [replace(c, split=split) for c, split in zip(result.candidates, splits, strict=True)]
            if gray_to_one:
                form = replace(form, channels=1 if all(candidate.header.gray for candidate in candidates) else 3)

            # Both splits in the order of their content hashes: mixed, and the same after renaming
            items: dict[Split, list[PackItem]] = {split: [] for split in SPLITS}
            places: dict[int, tuple[Split, int, str]] = {}  # position in the source -> place in the pack, content
            for c in sorted(candidates, key=lambda c: (c.content, c.name, c.position)):
                places[c.position] = (c.split, len(items[c.split]), c.content)
                items[c.split].append(c)

            # Decode in the order of the source; each image goes to its place in the pack
            contents = PackContents(form.size, form.channels, items, result.listing.label_names)
            with PackWriter(target, contents) as writer:
                looks: dict[int, Decoded] = {}
                writer.write(_decode_rows(source, dict(sorted(places.items())), form, looks), progress)
                bad_names = {bad.name for bad in writer.quarantined}
                result.candidates = [candidate for candidate in candidates if candidate.name not in bad_names]
                result.quarantined.extend(writer.quarantined)
                counts = writer.counts()
                if min(counts.values()) == 0:
                    continue
                _check_usable(source, result, config)
                if by_pixels:
                    together = unite_copies(
                        result.candidates,
                        {c.position: writer.pixels[places[c.position][:2]] for c in result.candidates},
                    )
                    if together != result.candidates and len({c.split for c in together}) == 2:
                        result.candidates = together
                        continue

                # What the manifest says beside the images themselves
                origin = f"split by content, {config.validation_fraction:.0%} to validate"
                description = (
                    f"{sum(counts.values()):,} images from {source.name} ({counts['train']:,} to train, "
                    f"{counts['validation']:,} to validate; {'its own split' if result.has_own_split else origin})"
                )
                notes = [*result.listing.notes, *([note] if note else []), *_remarks(result, config, form.size, looks)]
                facts = result.facts(source.name) | {"description": description, "notes": notes}
                return writer.commit(form.background, facts)


# --- scan ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate(PackItem):
    """An image whose header could be read.

    Attributes:
        position: its number in the source.
    """

    position: int
    split: Split
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

    def facts(self, name: str) -> dict[str, Any]:
        """Return what `check_bad_fraction` needs to know of the source called `name`, as kept in a manifest."""
        return {
            "name": name,
            "quarantined": [[bad.name, bad.reason] for bad in self.quarantined],
            "examined": self.examined,
            "refused": len(self.listing.quarantined),
            "listed": len(self.listing.records),
        }


def content_hash(raw: RawImage) -> str:
    """Return the SHA-256 of a file's bytes, or of an array's or image's shape and values."""
    if isinstance(raw, bytes):
        return hashlib.sha256(raw).hexdigest()
    values = np.asarray(raw)
    if values.dtype != np.uint8:
        with contextlib.suppress(BadImage):  # of what it is as 8 bits, unless its range has to be stated
            values, _ = scale_to_8_bit(values)
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
        unsplit = either * 1.1 + 16 if either else 0
        budget: dict[Split | None, float] = {"train": train, "validation": validation, None: unsplit}
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
        outcomes = map_images(lambda load: (content_hash(raw := load()), read_header(raw)), source.read(positions))
        seen: dict[int, tuple[str, Header] | BadImage] = {}
        for position, outcome in zip(positions, outcomes, strict=True):
            seen[position] = outcome
            if len(seen) % 64 == 0 or len(seen) == len(positions):
                progress("scanning images", len(seen), len(positions))
        result.examined += len(positions)

        # Admit them in the order of the subset
        for position in batch:
            record, outcome = records[position], seen[position]
            if isinstance(outcome, BadImage):
                result.quarantined.append(Quarantined(record.name, str(outcome)))
                continue
            content, header = outcome
            split = (record.split if own_split else None) or split_of(content, validation_fraction)
            if remaining[split] > 0:
                remaining[split] -= 1
                result.candidates.append(Candidate(record.name, content, record.labels, position, split, header))
    return result


def check_bad_fraction(facts: Mapping[str, Any], limit: float) -> None:
    """Raise DataError where too many files cannot be used, naming the first few.

    Args:
        facts: see `ScanResult.facts`: `examined` files were opened, `refused` ones were rejected unopened, and `listed`
            are the others, opened or not.
    """
    bad, refused = facts["quarantined"], facts["refused"]
    fraction = max((len(bad) - refused) / max(facts["examined"], 1), refused / max(facts["listed"] + refused, 1))
    if fraction > limit:
        first = "; ".join(Quarantined(*entry).format_line() for entry in bad[:3])
        raise DataError(
            f"{len(bad):,} files of {facts['name']} are unusable ({fraction:.0%}; the limit is {limit:.0%}): "
            f"{first}; fix or remove them, or raise data.max_bad_fraction."
        )


def _check_usable(source: Source, result: ScanResult, config: DataConfig) -> None:
    check_bad_fraction(result.facts(source.name), config.max_bad_fraction)
    if len(result.candidates) < 2:
        first = "".join(f" ({entry.format_line()})" for entry in result.quarantined[:1])
        count = "no usable image" if not result.candidates else "only one usable image"
        notes = "".join(f" {note}" for note in result.listing.notes)
        raise DataError(
            f"{source.name} has {count}{first}, and training and validation need one each.{notes} "
            "Check that --data names the right place, or try --data builtin."
        )


def _remarks(result: ScanResult, config: DataConfig, size: int, looks: Mapping[int, Decoded]) -> Iterator[str]:
    """What the user should know about the images that are used."""
    if result.quarantined:
        count, first = len(result.quarantined), result.quarantined[0].format_line()
        yield f"{count:,} files could not be used, e.g. {first}."
    small = sum(min(c.header.width, c.header.height) < size for c in result.candidates)
    if small:
        yield f"{small:,} images are smaller than {size} pixels and were enlarged."
    paged = [c for c in result.candidates if c.header.pages > 1]
    if paged:
        more = sum(c.header.pages - 1 for c in paged)
        name = escape_name(paged[0].name)
        yield (
            f"{len(paged):,} files hold {more:,} more pages or frames, which are not used, e.g. {name} "
            f"({paged[0].header.pages} in all): save each as a file to train on them."
        )
    used = [(c, looks[c.position]) for c in result.candidates if c.position in looks]
    if clear := [c for c, look in used if look.is_clear]:
        yield (
            f"{len(clear):,} images are fully transparent and show the background alone, e.g. "
            f"{escape_name(clear[0].name)}."
        )
    deep = [look.peak for _, look in used if look.peak and config.range == "auto"]
    for kind in dict.fromkeys(peak.kind for peak in deep):
        peaks = [peak for peak in deep if peak.kind == kind]
        high, white, _ = max(peaks, key=lambda peak: peak.high)
        if high < LOW_PEAK * white:
            likely = high if white == 1 else 2 ** max(8, math.ceil(math.log2(high + 1))) - 1
            yield (
                f"The brightest pixel of {len(peaks):,} images of {kind} values is at {high / white:.1%} of white "
                f"({high:,.4g} of {white:,.6g}), so they are dark. If white is less, say so, e.g. "
                f"--set data.range=[0,{likely:.4g}]."
            )
    content = {split: {c.content for c in result.candidates if c.split == split} for split in SPLITS}
    both = len(content["train"] & content["validation"])
    if both:
        yield f"{both:,} images are in both training and validation: the metrics will flatter the model."


# --- split -----------------------------------------------------------------------------------------------


def split_of(content_sha256: str, validation_fraction: float) -> Split:
    """Return validation where the hash, read as a number in [0, 1), is below the fraction."""
    return "validation" if int(content_sha256[:16], 16) / 2**64 < validation_fraction else "train"


def split_limits(max_images: int | None) -> dict[Split, int | None]:
    """Return the maximum number of images per split; None is no limit."""
    if max_images is None:
        return {"train": None, "validation": None}
    return {"train": max_images, "validation": max(MIN_VALIDATION_IMAGES, max_images // 10)}


def subset_order(names: Sequence[str]) -> list[int]:
    """Return the order in which a subset is filled: by the hash of the name, so that it is fair and stays."""
    hashes = [hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest() for name in names]
    return sorted(range(len(names)), key=lambda index: (hashes[index], names[index]))


def exact_split(content_sha256: Sequence[str], validation_fraction: float) -> list[Split]:
    """Keep the contents of the smallest hashes for validation: the fraction, and at least 16 of 32 images or more.

    For small sets, where the hash of each image alone would keep anything from none to three times as many.
    """
    total = len(content_sha256)
    least = MIN_EXACT_VALIDATION if total >= 2 * MIN_EXACT_VALIDATION else total // 4
    count = min(max(round(validation_fraction * total), least, 1), total - 1)
    validation = set(sorted(set(content_sha256))[:count])
    return ["validation" if content in validation else "train" for content in content_sha256]


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


def unite_copies(candidates: Sequence[Candidate], pixels: Mapping[int, str]) -> list[Candidate]:
    """Put all images of the same pixels into one split: that of the copy with the smallest content hash.

    Args:
        pixels: position in the source -> hash of the pixels.
    """
    splits: dict[str, Split] = {}
    for candidate in sorted(candidates, key=lambda c: c.content):
        splits.setdefault(pixels[candidate.position], candidate.split)
    return [replace(c, split=splits[pixels[c.position]]) for c in candidates]


# --- decode ----------------------------------------------------------------------------------------------


def _decode_rows(
    source: Source, places: Mapping[int, tuple[Split, int, str]], form: PixelFormat, looks: dict[int, Decoded]
) -> Iterator[Row]:
    """Decode the images at positions, ascending, for their places; one that changed since the scan is a bad one.

    Args:
        looks: receives what the user should know of an image, without its pixels, by its position.
    """

    def decode_unchanged(job: tuple[Loader, str]) -> Decoded:
        load, content = job
        raw = load()
        if content_hash(raw) != content:  # its split and its place in the order follow from what it was
            raise BadImage("changed while the images were packed; it is used from the next start on")
        return decode(raw, form)

    contents = (content for _, _, content in places.values())
    jobs = zip(source.read(list(places)), contents, strict=True)
    for (position, (split, index, _)), image in zip(places.items(), map_images(decode_unchanged, jobs), strict=True):
        if isinstance(image, Decoded) and (image.is_clear or image.peak):
            looks[position] = image._replace(pixels=NO_PIXELS)
        yield split, index, image.pixels if isinstance(image, Decoded) else image
