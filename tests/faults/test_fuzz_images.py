"""Damaged image files by the thousand: each gives pixels or a reason, soon, in bounded memory; the process lives.

They are decoded in a process of their own that says which file it is at, so that one which ends or stops it is known.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections import Counter
from functools import cache
from random import Random

import numpy as np
import pytest
from PIL import Image

import tests.helpers.image_zoo as zoo
from tests.faults.fault_rows import report
from tests.faults.mutations import damaged
from unified_vae.data.decode import PixelFormat, decode, quiet_pillow, read_header
from unified_vae.data.sources.base import BadImage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server")
SEED, FEW, MANY = 1, 120, 20_000
SLOWEST_SECONDS = 20.0  # of the processor, for one file
PATIENCE_SECONDS = 200.0  # for one file, on a machine that does other things as well
MOST_MEMORY = 3 * 2**30
FORM = PixelFormat(zoo.SIZE, 3, zoo.BACKGROUND)


@cache
def originals() -> dict[str, bytes]:
    files = {name: good.data for name, good in zoo.good_files().items()}
    return files | {"rgb.qoi": zoo.encoded(Image.fromarray(zoo.RGB), "QOI")}


def file(number: int) -> bytes:
    rng = Random(f"{SEED} {number}")
    return damaged(originals()[rng.choice(sorted(originals()))], rng)


def _outcome(data: bytes) -> str:
    """`used` or `refused`; anything else that is raised gets out."""
    try:
        header = read_header(data)
        pixels = decode(data, FORM).pixels
    except BadImage as bad:
        assert str(bad).strip() and "\n" not in str(bad).strip(), repr(str(bad))
        return "refused"
    assert pixels.shape == (zoo.SIZE, zoo.SIZE, 3) and header.width >= 1
    return "used"


def _decode_all(count: int, at, pipe) -> None:
    """Every file in turn; `at` is the number of the one that is being decoded."""
    result, slowest = Counter(), 0.0
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with quiet_pillow():
        for number in range(count):
            at.value = number
            begun = time.process_time()
            try:
                result[_outcome(file(number))] += 1
            except BaseException as error:
                result[f"file {number}: {type(error).__name__}: {error}"] += 1
            slowest = max(slowest, time.process_time() - begun)
    pipe.send((result, slowest, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base))


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_damaged_files_are_used_or_refused(count: int) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    at = fork.Value("q", 0, lock=False)
    process = fork.Process(target=_decode_all, args=(count, at, theirs), daemon=True)
    process.start()
    theirs.close()
    while not ours.poll(PATIENCE_SECONDS):
        last, at.value = at.value, -1
        assert last >= 0, "a file takes too long"
    try:
        result, slowest, kibibytes = ours.recv()
    except EOFError:
        pytest.fail(f"file {at.value} ended the process")
    assert result.keys() == {"used", "refused"}, result
    assert result.total() == count and result["refused"] > count // 3
    assert kibibytes * 1024 < MOST_MEMORY and slowest < SLOWEST_SECONDS
    report(
        fault=f"{count:,} mutated image files, 12 formats",
        target="0 tracebacks, 0 hangs, 0 process deaths",
        result=f"0; {result['used']:,} used, {result['refused']:,} refused, slowest {slowest:.1f} s, "
        f"memory +{kibibytes / 1024:.0f} MiB",
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "QOI"])
def test_a_file_that_was_cut_is_refused_or_whole(kind: str) -> None:
    """Cut anywhere: never other pixels, also where a decoder would fill up what is missing."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    data = zoo.encoded(Image.fromarray(pixels), kind)
    with quiet_pillow():
        whole = decode(data, FORM).pixels
        for length in np.linspace(0, len(data) - 1, 40).astype(int):
            try:
                result = decode(data[:length], FORM).pixels
            except BadImage:
                continue
            np.testing.assert_array_equal(result, whole, err_msg=f"{kind} cut to {length} of {len(data)} bytes")
