"""Disks that fill up, become read-only or vanish: earlier checkpoints stay, training goes on, a sentence at the end."""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.faults.observed_runs import watched
from tests.helpers.disks import limit_file_size, obey_permissions, small_disk
from tests.helpers.runs import Recorder, leftovers, outcome, request
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.core.run_dir import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits, mounts and permissions are Linux's here")

OUTAGES, OUTAGES_LONG = 3, 20
STEPS = 24
OFTEN = {"training": {"epochs": STEPS // 6, "checkpoint": {"every_minutes": 1e-6}}}  # a save after each step
LOST = "NOT SAVED"


class Full(Recorder):
    """Fills the disk at some steps and frees it three steps later; looks each time at what is still there."""

    def __init__(self, checkpoints, outages, first=4, until=10**9):
        super().__init__()
        self.checkpoints, self.outages, self.first, self.until = checkpoints, outages, first, until
        self.seen = []

    def step_done(self, event):
        place, phase = divmod(event.step - self.first, 6)
        if event.step < self.first or place >= self.outages:
            return
        if phase == 0:
            self.fill(1000 * (7 * place % 23))
        if phase == 2:
            self.seen.append(self.what_is_there())
        if phase == 3:
            self.free()

    def what_is_there(self):
        """Steps of the checkpoints, each of which loads, but for those that a save under way deletes meanwhile."""
        steps = retention.saved_steps(self.checkpoints)
        for step in steps:
            try:
                checkpoint_format.load(self.checkpoints, step)
            except CheckpointError:
                if step in retention.saved_steps(self.checkpoints):
                    raise
        return steps

    def fill(self, most_bytes):
        limit_file_size(most_bytes)

    def free(self):
        limit_file_size(None)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """What a run on an ample disk ends in."""
    return undisturbed(source, tmp_path_factory.mktemp("undisturbed"), OFTEN)


def undisturbed(source, folder, change):
    answer = watched(request(folder / "undisturbed", source, change), Recorder(), folder / "answer.json")
    assert answer["exit_code"] == 0
    return outcome(folder / "undisturbed")


def fill_now_and_then(source, tmp_path, outages, change, expected):
    """A run whose disk is full again and again; how many saves failed."""
    run_dir = tmp_path / "run"
    answer = watched(request(run_dir, source, change), Full(run_dir / "checkpoints", outages), tmp_path / "answer.json")
    assert (answer["exit_code"], answer["outcome"]) == (0, "finished")
    failed = [notice for notice in answer["notices"] if notice.startswith(LOST)]
    assert len(answer["seen"]) == outages and all(answer["seen"]), "no checkpoint was left in an outage"
    assert len(failed) >= outages and all(f"{run_dir}/" in line and "is kept" in line for line in failed)
    assert outcome(run_dir) == expected, "an outage has changed what the run ends in"
    assert leftovers(run_dir) == []
    return len(failed)


def test_a_full_disk_now_and_then_changes_nothing_in_the_end(source, tmp_path, expected):
    fill_now_and_then(source, tmp_path, OUTAGES, OFTEN, expected)


@pytest.mark.long
def test_a_full_disk_twenty_times(source, tmp_path):
    change = {"training": {"epochs": 1 + OUTAGES_LONG, "checkpoint": {"every_minutes": 1e-6}}}
    expected = undisturbed(source, tmp_path, change)
    failed = fill_now_and_then(source, tmp_path, OUTAGES_LONG, change, expected)
    report(
        fault=f"disk full during save, {OUTAGES_LONG} times in one run",
        target="training continues; earlier checkpoints load",
        result=f"{OUTAGES_LONG} of {OUTAGES_LONG}; {failed} failed saves reported; bit-identical end",
    )


class Ballast(Full):
    """Takes all the room of a real file system, and gives it back."""

    def fill(self, most_bytes):
        with (self.checkpoints.parent.parent / "ballast").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    def free(self):
        (self.checkpoints.parent.parent / "ballast").unlink()


def test_a_file_system_without_room(source, tmp_path, expected):
    with small_disk(tmp_path / "small", kilobytes=4096) as disk:
        run_dir = disk / "run"
        run_request = request(run_dir, source, OFTEN)
        answer = watched(run_request, Ballast(run_dir / "checkpoints", OUTAGES), tmp_path / "answer.json")
        assert (answer["exit_code"], answer["outcome"]) == (0, "finished")
        assert any(notice.startswith(LOST) and "No space left" in notice for notice in answer["notices"])
        assert all(answer["seen"])
        assert outcome(run_dir) == expected and leftovers(run_dir) == []


class FullAtTheEnd(Recorder):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def step_done(self, event):
        if event.step == self.step:
            limit_file_size(100)


def test_full_at_the_end_the_same_command_finishes(source, tmp_path, expected):
    run_request = request(tmp_path / "run", source, OFTEN, command="uv run train.py --mode x")
    answer = watched(run_request, FullAtTheEnd(STEPS), tmp_path / "answer.json")
    assert answer["exit_code"] == 3
    assert "could not be written" in answer["error"] and "uv run train.py --mode x" in answer["error"]
    assert "is kept" in answer["error"] and str(tmp_path / "run" / "model") in answer["error"]
    others = [notice for notice in answer["notices"] if not notice.startswith(LOST)]
    for what in ("metrics.jsonl", "timing.jsonl", "tensorboard", "samples"):
        assert sum(what in notice for notice in others) == 1, what
    assert watched(run_request, Recorder(), tmp_path / "answer.json")["outcome"] == "finished"
    assert outcome(tmp_path / "run") == expected and leftovers(tmp_path / "run") == []


def test_a_full_disk_is_reported_before_the_first_step(source, tmp_path):
    with small_disk(tmp_path / "small", kilobytes=16) as disk:
        answer = watched(request(disk / "run", source), Recorder(), tmp_path / "answer.json")
    assert answer["exit_code"] == 3 and "No space left" in answer["error"] and "--run-dir" in answer["error"]


@pytest.mark.parametrize("name", ["", "checkpoints", "samples"])
def test_a_read_only_folder_is_an_error_before_the_first_step(source, tmp_path, name):
    folder = tmp_path / "run" / name
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    answer = watched(request(tmp_path / "run", source), Recorder(), tmp_path / "answer.json", permissions=True)
    assert answer["exit_code"] == 3 and f"{folder} cannot be written (Permission denied)" in answer["error"]
    assert not list(tmp_path.rglob("step-*"))


def refused_at_once(run_dir):
    """In a process for which permissions count: whether the place of a run is refused before torch is needed."""
    obey_permissions()
    try:
        RunFolder(run_dir).refuse_unwritable()
    except EnvironmentProblem as problem:
        raise SystemExit(problem.exit_code if "Permission denied" in str(problem) else 1) from None


@pytest.mark.parametrize("name", ["run", "new/run", "new"])
def test_an_unwritable_folder_is_reported_without_torch(tmp_path, name):
    (tmp_path / "run").mkdir()
    for mode, code in ((0o755, 0), (0o555, 3)):
        for folder in (tmp_path / "run", tmp_path):
            folder.chmod(mode)
        process = multiprocessing.get_context("fork").Process(target=refused_at_once, args=(tmp_path / name,))
        process.start()
        process.join()
        assert process.exitcode == code
    tmp_path.chmod(0o755)


def test_little_room_is_reported_before_the_first_step(source, tmp_path):
    with small_disk(tmp_path / "small", kilobytes=200) as disk:
        answer = watched(
            request(disk / "run", source, {"training": {"max_steps": 1}}), Recorder(), tmp_path / "answer.json"
        )
    assert any("a checkpoint takes about" in notice and "MB free" in notice for notice in answer["notices"])


class Forbidden(Recorder):
    """Takes the right to write away at one step and gives it back at another."""

    def __init__(self, run_dir, start, end):
        super().__init__()
        self.run_dir, self.start, self.end = run_dir, start, end

    def step_done(self, event):
        if event.step in (self.start, self.end):
            mode = 0o555 if event.step == self.start else 0o755
            for place, _, _ in os.walk(self.run_dir):  # which passes over what a save under way takes away meanwhile
                with contextlib.suppress(FileNotFoundError):
                    Path(place).chmod(mode)


def test_a_folder_that_is_read_only_for_a_while(source, tmp_path, expected):
    run_dir = tmp_path / "run"
    answer = watched(
        request(run_dir, source, OFTEN), Forbidden(run_dir, 5, 15), tmp_path / "answer.json", permissions=True
    )
    failed = [notice for notice in answer["notices"] if notice.startswith(LOST)]
    assert answer["outcome"] == "finished" and len(failed) >= 3
    assert all(str(run_dir) in line and "Permission denied" in line for line in failed)
    assert outcome(run_dir) == expected and leftovers(run_dir) == []


def test_a_folder_that_stays_read_only(source, tmp_path, expected):
    run_dir = tmp_path / "run"
    run_request = request(run_dir, source, OFTEN)
    answer = watched(run_request, Forbidden(run_dir, 15, -1), tmp_path / "answer.json", permissions=True)
    assert answer["exit_code"] == 3 and str(run_dir) in answer["error"] and "Permission denied" in answer["error"]
    for folder in (run_dir, *(path for path in run_dir.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    assert watched(run_request, Recorder(), tmp_path / "answer.json")["outcome"] == "finished"
    assert outcome(run_dir) == expected


class Vanishing(Recorder):
    def __init__(self, run_dir, start, end):
        super().__init__()
        self.run_dir, self.start, self.end = run_dir, start, end

    def step_done(self, event):
        away = self.run_dir.with_name("away")
        if event.step == self.start:
            self.run_dir.rename(away)
        if event.step == self.end:
            away.rename(self.run_dir)


def test_a_folder_that_vanishes_and_comes_back(source, tmp_path, expected):
    """As a network disk does: nothing is written to the place where it was."""
    run_dir = tmp_path / "runs" / "run"
    answer = watched(request(run_dir, source, OFTEN), Vanishing(run_dir, 5, 15), tmp_path / "answer.json")
    failed = [notice for notice in answer["notices"] if notice.startswith(LOST)]
    assert answer["outcome"] == "finished" and len(failed) >= 3 and all(str(run_dir) in line for line in failed)
    assert outcome(run_dir) == expected and leftovers(run_dir) == []


class Deleting(Recorder):
    def __init__(self, run_dir, step):
        super().__init__()
        self.run_dir, self.step = run_dir, step

    def step_done(self, event):
        while event.step == self.step and self.run_dir.exists():  # a save under way may put a file in its place again
            shutil.rmtree(self.run_dir, ignore_errors=True)


def test_a_folder_that_is_deleted_gives_a_model_and_exit_code_3(source, tmp_path):
    run_dir = tmp_path / "run"
    answer = watched(request(run_dir, source, OFTEN), Deleting(run_dir, 15), tmp_path / "answer.json")
    assert answer["exit_code"] == 3
    assert any(notice.startswith(LOST) and str(run_dir) in notice for notice in answer["notices"])
    assert json.loads((run_dir / "model" / "config.json").read_text())["run"]["trained_steps"] == STEPS


@pytest.mark.parametrize("kind", ["read-only", "full"])
def test_the_systems_folder_of_temporary_files_does_not_matter(source, tmp_path, expected, kind):
    place = tmp_path / "temporary"

    def go():
        run_request = request(tmp_path / "run", source, OFTEN)
        answer = watched(run_request, Temporary(place), tmp_path / "answer.json", permissions=True)
        assert answer["outcome"] == "finished" and answer["seen"] == ["unusable"]

    if kind == "full":
        with small_disk(place, kilobytes=4):
            (place / "ballast").write_bytes(bytes(4096))
            go()
    else:
        place.mkdir()
        place.chmod(0o555)
        go()
    assert outcome(tmp_path / "run") == expected


class Temporary(Recorder):
    """Sets the folder of temporary files in the process that trains, and shows that nothing can be put there."""

    def __init__(self, place):
        super().__init__()
        self.place, self.seen = place, []

    def phase(self, text, done, total):
        os.environ["TMPDIR"] = str(self.place)

    def run_started(self, event):
        assert os.environ["TMPDIR"] == str(self.place)
        try:
            (Path(self.place) / "probe").write_bytes(bytes(8192))
        except OSError:
            self.seen.append("unusable")


def test_checkpoints_do_not_count_unwritten_metrics_rows(tmp_path):
    """What a checkpoint tells of the file is on the disk before the checkpoint is."""
    from unified_vae.training.loggers import MetricsLog

    (tmp_path / "run").mkdir()
    said = []
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl", 0, said.append)
    log.write("train", 1, 0.1, {"x": 1.0})
    (tmp_path / "run").rename(tmp_path / "away")
    log.write("train", 2, 0.2, {"x": 2.0})
    with pytest.raises(OSError):
        log.sync()
    (tmp_path / "away").rename(tmp_path / "run")
    log.write("train", 3, 0.3, {"x": 3.0})
    log.sync()
    rows = [json.loads(line)["step"] for line in log.path.read_text().splitlines()]
    assert rows == [1, 2, 3] and log.rows == 3 and len(said) == 2


def test_a_checkpoint_is_never_made_in_a_folder_that_is_gone(tmp_path):
    with pytest.raises(CheckpointError, match="gone"):
        checkpoint_format.save(tmp_path / "gone", checkpoint_format.Checkpoint(1, {}, {}))
    assert not (tmp_path / "gone").exists()
