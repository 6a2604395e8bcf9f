"""Damaged settings by the thousand: each composes a run or gives one sentence, soon; nothing else is raised."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random

import pytest

from tests.faults.fault_rows import report
from tests.faults.mutations import garbled, rearranged
from tests.helpers.good_config import GOOD
from unified_vae.config.base import field_paths
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import UserError
from unified_vae.pipeline.plan import check_request, plan_mode, plan_presets

SEED, FEW, MANY = 1, 100, 20_000
SLOWEST_SECONDS, LONGEST_SENTENCE = 5.0, 2_000
PATHS = field_paths(RunConfig)
WORDS = [
    "1",
    "x",
    "{",
    "[1]",
    "null",
    "",
    "1e999",
    "true",
    '"a',
    '{"kind":"sgd"}',
    '{"kind":{}}',
    "-0",
    "1_0",
    "~q",
    "a" * 3000,
]


def documents() -> list[dict[str, object]]:
    """A book, a book with settings beside it, and the record of a run."""
    config = RunConfig().model_dump(mode="json")
    record = {"config": config, "requested": config, "names": {"loss": "l"}, "origins": {}}
    return [GOOD, {**GOOD, **config}, record]


def file(number: int, sound: list[dict[str, object]]) -> tuple[bytes, list[str]]:
    """The content of a damaged file, and words after --set, some of them wrong as well."""
    rng = Random(f"{SEED} {number}")
    document = rng.choice(sound)
    if rng.random() < 0.6:
        content = json.dumps(rearranged(document, rng), indent=rng.choice([None, 1])).encode()
    else:
        content = garbled(json.dumps(document, indent=1), rng)
    words = [f"{rng.choice(PATHS)[: rng.choice([None, None, -1])]}={rng.choice(WORDS)}"]
    return content, words if rng.random() < 0.3 else []


def _compose(path: Path, shipped: Path, words: list[str]) -> None:
    book = PresetBook.load(extra=path, shipped=shipped)
    command_line = from_command_line({}, words)
    if book.record is not None:
        check_request(plan_presets(book, {}, command_line, None))
    else:
        check_request(plan_mode(book, next(iter(book.modes)), command_line, None))


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_damaged_settings_compose_or_are_refused(count: int, tmp_path: Path) -> None:
    shipped, mine = tmp_path / "config_unified.json", tmp_path / "mine.json"
    shipped.write_text(json.dumps(GOOD))
    sound, refused, slowest = documents(), 0, 0.0
    for number in range(count):
        content, words = file(number, sound)
        mine.write_bytes(content)
        begun = time.process_time()
        try:
            _compose(mine, shipped, words)
        except UserError as error:
            refused += 1
            assert error.exit_code == 2 and 0 < len(str(error)) < LONGEST_SENTENCE, f"file {number}: {error}"
        except Exception as error:
            raise AssertionError(f"file {number} with --set {words}: {error!r}") from error
        slowest = max(slowest, time.process_time() - begun)
    assert refused > count // 2
    assert slowest < SLOWEST_SECONDS
    report(
        fault=f"{count:,} mutated config files",
        target="0 tracebacks, 0 hangs, exit code 2",
        result=f"0; {count - refused:,} composed, {refused:,} refused, slowest {slowest:.2f} s",
    )
