"""Runs in processes of their own that report what they said and how they ended."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

from tests.helpers.disks import limit_file_size, obey_permissions
from tests.helpers.runs import Recorder, server, train
from unified_vae.core.errors import UserError
from unified_vae.pipeline.plan import RunRequest


def run_and_report(run_request: RunRequest, watcher: Recorder, answer_file: Path, permissions: bool) -> None:
    """In the process: run, then write to `answer_file` what there is to say."""
    import torch

    torch.set_num_threads(1)
    if permissions:
        obey_permissions()
    answer: dict[str, Any] = {}
    try:
        finished = train(run_request, [watcher])
        answer = {"exit_code": finished.exit_code, "outcome": finished.outcome, "step": finished.step}
    except UserError as error:
        answer = {"exit_code": error.exit_code, "error": str(error)}
    except BaseException:
        answer = {"traceback": traceback.format_exc()}
    limit_file_size(None)
    if failed := [notice for notice in watcher.notices if notice.startswith(f"{watcher.writes} cannot be written")]:
        answer = {"traceback": f"the watcher itself failed, which a run passes over: {failed}"}
    answer_file.write_text(json.dumps({**answer, "notices": watcher.notices, "seen": getattr(watcher, "seen", [])}))


def watched(run_request: RunRequest, watcher: Recorder, answer_file: Path, permissions: bool = False) -> dict[str, Any]:
    """Run in a process of its own; how it ended: `exit_code`, `outcome` or `error`, `notices`, `seen`.

    Args:
        answer_file: file for the answer, outside of what is disturbed.
        permissions: let them count, also for root.
    """
    answer_file.unlink(missing_ok=True)
    process = server().Process(target=run_and_report, args=(run_request, watcher, answer_file, permissions))
    process.start()
    process.join(300)
    assert process.exitcode == 0, f"the process ended with {process.exitcode}"
    answer: dict[str, Any] = json.loads(answer_file.read_text())
    assert "traceback" not in answer, answer["traceback"]
    return answer
