"""Checkpoints and models changed at random: read to the end, or refused in a sentence, and no code is run."""

import hashlib
import json
import math
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.faults.fault_rows import report
from tests.faults.test_pickles import Payload
from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.analysis.preflight import Preflight
from unified_vae.config.run import RunRecord
from unified_vae.core import retention
from unified_vae.core.checkpoint_format import MANIFEST, seal
from unified_vae.core.errors import UserError
from unified_vae.models.pretrained import open_pretrained
from unified_vae.pipeline.resume import differences, refuse_impossible

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the time limit needs a signal")
INPUTS, INPUTS_LONG = 500, 20_000
SECONDS = 20.0  # after which an input counts as a hang
TINY = {
    "model": {"image_size": 8, "latents": 2, "base_channels": 4},
    "training": {"max_steps": 2, "batch_size": 4},
    "density": {"fit": "mixture"},
}
NASTY = [
    None,
    True,
    -1,
    0,
    1,
    10**30,
    1e308,
    math.nan,
    -math.inf,
    "",
    "x" * 3000,
    "../..",
    "\0",
    [],
    {},
    [[]],
    {"": {}},
]


class Tiny:
    """A run and all that opens it again: the checkpointer of its model, and the files as they were saved."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        jobs = []
        source = write_images(folder / "images.npy", count=24, size=8)
        self.request = request(folder / "run", source, TINY)
        train(self.request, [Recorder()], prepare=jobs.append)
        self.checkpointer = jobs[0].checkpointer
        self.step = retention.saved_steps(folder / "run" / "checkpoints")[0]
        saved, model = next((folder / "run" / "checkpoints").glob(f"step-*{self.step}")), folder / "run" / "model"
        self.checkpoint = {path.name: path.read_bytes() for path in saved.iterdir()}
        read = (".json", ".safetensors")  # card and samples are for people
        self.model = {path.name: path.read_bytes() for path in model.iterdir() if path.suffix in read}

    def open_checkpoint(self, root):
        """As a start does that continues."""
        saved = retention.newest_good(root, lambda text: None, set_aside=False)
        record = RunRecord.from_json(saved.entry("record"), root)
        refuse_impossible(differences(record, self.request.run.config), record, {}, root)
        assert isinstance(record.data["fingerprint"], str)
        Preflight.from_json(record.preflight)
        self.checkpointer.restore(saved)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


# --- changes --------------------------------------------------------------------------------------------------


def flip(data, rng):
    bad = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def overwrite(data, rng):
    start = rng.choice([0, 0, 8, rng.randrange(len(data))])
    length = rng.choice([1, 2, 8, 8, 100])
    return data[:start] + rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)]) + data[start + length :]


def cut(data, rng):
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice([data[:start], data[start:], data[:start] + data[end:], data[:end] + data[start:]])


def digit(data, rng):
    """Another digit, bracket or letter where one is: the text stays nearly well-formed."""
    head = min(len(data), 4000)
    places = [place for place in range(head) if chr(data[place]) in '0123456789[]{}",:']
    if not places:
        return flip(data, rng)
    place = rng.choice(places)
    return data[:place] + rng.choice([b"", b"9", b"-", b"0", b"[", b"}", b'"', b"e9", b"1" * 400]) + data[place + 1 :]


def nested(data, rng):
    depth = rng.choice([10, 1000, 100_000])
    return rng.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth])


def restructured(data, rng):
    """JSON with one entry changed, renamed, doubled or taken out; safetensors likewise in their header."""
    start = 0 if data[:1] == b"{" else 8
    end = len(data) if start == 0 else 8 + int.from_bytes(data[:8], "little")
    content = json.loads(data[start:end])
    spoil(content, rng)
    text = json.dumps(content).encode()
    return text if start == 0 else len(text).to_bytes(8, "little") + text + data[end:]


def spoil(content, rng):
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        break
    match rng.randrange(4) if isinstance(place, dict) else 0:
        case 0:
            place[key] = rng.choice(NASTY)
        case 1:
            del place[key]
        case 2:
            place[rng.choice(["", "x", key + "x", key.upper()])] = place.pop(key)
        case 3:
            place[rng.choice(["extra", "seal", "format"])] = place[key]


CHANGES = [flip, overwrite, cut, digit, nested, restructured, restructured, restructured]


def changed(files, rng, payload):
    """The files with one of them changed; its name."""
    name = rng.choice(sorted(files))
    other = files[rng.choice(sorted(files))]
    kind = rng.choice([*CHANGES, "payload", "swap"])
    if kind == "payload":
        return {**files, name: rng.choice(payload)}, name
    if kind == "swap":
        return {**files, name: other}, name
    return {**files, name: kind(files[name], rng)}, name


def sealed(files, name, rng):
    """As a forger would: the manifest describes the changed file. So the readers behind it are reached."""
    try:
        content = json.loads(files[MANIFEST])
        if name != MANIFEST:
            data = files[name]
            content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        content.pop("seal", None)
        text = json.dumps({**content, "seal": seal(content)}, indent=1).encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return files
    return {**files, MANIFEST: text}


# --- trials ---------------------------------------------------------------------------------------------------


@contextmanager
def time_limit():
    def late(number, frame):
        raise TimeoutError(f"more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def put(folder, files, held):
    """Write the files that differ from what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if held.get(name) != data:
            (folder / name).write_bytes(data)
            held[name] = data


def trials(tiny, count, folder, seed):
    """So many changed inputs, three of four as a checkpoint, one as a model: how many were read, how many refused.

    Raises whatever is no sentence for the user, with the number of the trial.
    """
    marker = folder / "executed"
    payload = [pickle.dumps(Payload(marker), protocol=protocol) for protocol in (0, 4)]
    places = {"checkpoints": {}, "model": {}}
    read = refused = 0
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        as_model = rng.random() < 0.25
        files, name = changed(tiny.model if as_model else tiny.checkpoint, rng, payload)
        if not as_model and rng.random() < 0.85:
            files = sealed(files, name, rng)
        place = folder / "model" if as_model else folder / "checkpoints" / f"step-{tiny.step:09d}"
        put(place, files, places["model" if as_model else "checkpoints"])
        try:
            with time_limit():
                open_pretrained(place) if as_model else tiny.open_checkpoint(place.parent)
            read += 1
        except UserError as problem:
            assert str(problem), "an error without words"
            refused += 1
        except BaseException as problem:
            raise AssertionError(f"trial {seed}-{number} ({name}): {type(problem).__name__}: {problem}") from problem
        assert not marker.exists(), f"trial {seed}-{number} ({name}) ran code"
    return read, refused


@contextmanager
def fast_folder():
    """In memory where there is such a place: the trials write a lot."""
    shared = Path("/dev/shm")
    name = tempfile.mkdtemp(dir=shared if shared.is_dir() else None)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name)


def test_the_unchanged_files_are_read(tiny):
    with fast_folder() as folder:
        put(folder / "checkpoints" / f"step-{tiny.step:09d}", tiny.checkpoint, {})
        put(folder / "model", tiny.model, {})
        tiny.open_checkpoint(folder / "checkpoints")
        open_pretrained(folder / "model")


def test_changed_inputs(tiny):
    with fast_folder() as folder:
        read, refused = trials(tiny, INPUTS, folder, "short")
    assert refused > INPUTS / 2 and read + refused == INPUTS


@pytest.mark.long
def test_twenty_thousand_changed_inputs(tiny):
    begun = time.monotonic()
    with fast_folder() as folder:
        read, refused = trials(tiny, INPUTS_LONG, folder, "long")
    minutes = (time.monotonic() - begun) / 60
    report(
        fault=f"{INPUTS_LONG:,} mutated checkpoints and models, most with a valid checksum",
        target="0 tracebacks, 0 hangs, no code run",
        result=f"0; {refused:,} refused with one sentence, {read:,} loaded ({minutes:.0f} min)",
    )
