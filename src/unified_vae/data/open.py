"""Open the images of a run: from the cache where they are packed already, else pack them first."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from unified_vae.config.data import DataConfig
from unified_vae.data import builtin
from unified_vae.data.packing.cache_dir import cache_root, disk_problems, sweep
from unified_vae.data.packing.decode import PixelFormat, colour
from unified_vae.data.packing.inventory import Inventory
from unified_vae.data.packing.pack import discard
from unified_vae.data.packing.packed import FORMAT_VERSION, DamagedPack, Pack, PackedSplit, read_pack
from unified_vae.data.packing.prepare import pack_builtin, pack_source
from unified_vae.data.packing.survey import check_bad_fraction
from unified_vae.data.records import Progress, Quarantined
from unified_vae.data.sources.find import find_source
from unified_vae.data.sources.names import BUILTIN


@dataclass(frozen=True)
class DataSets:
    """The images of a run.

    Attributes:
        channels: 1 or 3, as resolved.
        description: one line for the user.
        fingerprint: SHA-256 over the content hashes of both sides in order, size, channels and background.
        quarantined: files that could not be used.
        notes: lines the user should read.
        inventory: which images they are.
    """

    train: PackedSplit
    validation: PackedSplit
    channels: int
    description: str
    fingerprint: str
    quarantined: Sequence[Quarantined]
    notes: Sequence[str]
    inventory: Inventory


def open_data(config: DataConfig, image_size: int, channels: int | None, progress: Progress) -> DataSets:
    """The training and validation images at the run's size.

    Args:
        image_size: pixels on a side; images are covered and centre-cropped, never squashed.
        channels: 1, 3, or None to follow the data: 1 where every image is grey.
        progress: called with (what, done, total) while images are read.

    Raises:
        DataError: no such source, no usable images, or too many that cannot be used.
        EnvironmentProblem: the cache cannot be written, the disk is too small, a package is missing.
    """
    root = cache_root(config.cache_dir)
    source = None if config.source == BUILTIN else find_source(config.source, root, progress)
    identity = builtin.identity() if source is None else source.identity()
    target = root / pack_key(identity, config, image_size, channels)
    remarks = []
    try:
        pack = read_pack(target)
    except DamagedPack as damage:
        remarks.append(f"The packed images in the cache were damaged ({damage}) and were made again.")
        with contextlib.suppress(FileNotFoundError), disk_problems(root):
            discard(target)
        pack = None
    if pack is None:
        with disk_problems(root):
            root.mkdir(parents=True, exist_ok=True)
            sweep(root)
        form = PixelFormat(image_size, channels or 3, colour(config.background))
        if source is None:
            pack = pack_builtin(root, target, config, form, progress)
        else:
            pack = pack_source(source, root, target, config, form, channels, progress)
    return _data_sets(pack, config, remarks)


def pack_key(identity: str, config: DataConfig, image_size: int, channels: int | None) -> str:
    """The name of a pack's folder: everything that decides what is in it."""
    parts = (
        FORMAT_VERSION,
        identity,
        image_size,
        channels,
        colour(config.background),
        config.max_images,
        config.validation_fraction,
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _data_sets(pack: Pack, config: DataConfig, remarks: Sequence[str]) -> DataSets:
    facts = pack.manifest
    quarantined = [Quarantined(name, reason) for name, reason in facts["quarantined"]]
    check_bad_fraction(
        facts["name"],
        quarantined,
        facts["examined"],
        facts["refused"],
        facts["listed"],
        config.max_bad_fraction,
    )
    return DataSets(
        train=pack.split("train"),
        validation=pack.split("validation"),
        channels=int(facts["channels"]),
        description=facts["description"],
        fingerprint=facts["fingerprint"],
        quarantined=quarantined,
        notes=[*remarks, *facts["notes"]],
        inventory=Inventory.of(facts),
    )
