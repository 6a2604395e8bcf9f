"""A door in this process: words in, exit code and both streams out; `fit` only takes notes."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unified_vae.cli import run_mode, run_presets
from unified_vae.cli.door import enter
from unified_vae.core.events import Observer, RunFinished
from unified_vae.experiment.request import RunRequest


@dataclass
class Door:
    """Calls a door and remembers what it asked `fit` to do."""

    capsys: pytest.CaptureFixture[str]
    requests: list[RunRequest] = field(default_factory=list)
    watchers: list[Observer] = field(default_factory=list)
    error: BaseException | None = None
    exit_code: int = 0

    def mode(self, *words: str) -> tuple[int, str, str]:
        """train.py with these words: exit code, stdout, stderr."""
        return self._enter(run_mode.app, "train.py", words)

    def presets(self, *words: str) -> tuple[int, str, str]:
        """train_unified.py with these words: exit code, stdout, stderr."""
        return self._enter(run_presets.app, "train_unified.py", words)

    def request(self) -> RunRequest:
        """The only request that was made."""
        assert len(self.requests) == 1
        return self.requests[0]

    def fit(self, request: RunRequest, observers: Sequence[Observer]) -> RunFinished:
        self.requests.append(request)
        self.watchers = list(observers)
        if self.error is not None:
            raise self.error
        return RunFinished("finished", request.run_dir, 0, {}, None, 0.0, exit_code=self.exit_code)

    def _enter(self, app: object, script: str, words: Sequence[str]) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = enter(app, script, words)  # type: ignore[arg-type]
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def door(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Door:
    """A door with a `fit` that takes notes, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    result = Door(capsys)
    module = types.ModuleType("unified_vae.pipeline.fit")
    module.fit = result.fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unified_vae.pipeline.fit", module)
    return result


@pytest.fixture
def book_in_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the text as the current folder's own preset book."""

    def write(text: str) -> Path:
        path = tmp_path / "config" / "config_unified.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write
