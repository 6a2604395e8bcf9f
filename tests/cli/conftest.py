"""The training commands in this process: arguments in, exit code and both streams out; `fit` only takes notes."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unified_vae.cli.app import main
from unified_vae.core.events import Observer, RunFinished
from unified_vae.pipeline.plan import RunRequest


@dataclass
class Commands:
    """Runs the training commands and remembers what they asked `fit` to do."""

    capsys: pytest.CaptureFixture[str]
    requests: list[RunRequest] = field(default_factory=list)
    observers: list[Observer] = field(default_factory=list)
    error: BaseException | None = None
    exit_code: int = 0

    def train(self, *argv: str) -> tuple[int, str, str]:
        """train.py with these arguments: exit code, stdout, stderr."""
        return self._run("train.py", argv)

    def train_unified(self, *argv: str) -> tuple[int, str, str]:
        """train_unified.py with these arguments: exit code, stdout, stderr."""
        return self._run("train_unified.py", argv)

    def request(self) -> RunRequest:
        """The only request that was made."""
        assert len(self.requests) == 1
        return self.requests[0]

    def fit(self, request: RunRequest, observers: Sequence[Observer]) -> RunFinished:
        self.requests.append(request)
        self.observers = list(observers)
        if self.error is not None:
            raise self.error
        return RunFinished("finished", request.run_dir, 0, {}, None, 0.0, exit_code=self.exit_code)

    def _run(self, program: str, argv: Sequence[str]) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = main(program, argv)
        captured = self.capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """The commands with a `fit` that takes notes, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    result = Commands(capsys)
    module = types.ModuleType("unified_vae.pipeline.fit")
    module.fit = result.fit  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unified_vae.pipeline.fit", module)
    return result
