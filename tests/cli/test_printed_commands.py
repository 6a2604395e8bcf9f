"""Every command that a run prints is quoted: a shell reads back the very words, and the parser takes them."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.runs import Recorder, request, write_images
from unified_vae.cli.app import main, parse, restart_command
from unified_vae.console import finished_lines
from unified_vae.core.errors import ConfigError
from unified_vae.evaluation.diagnose import diagnose
from unified_vae.pipeline.fit import fit

NAME = "my  run's $x *"


def words_of(command: str) -> list[str]:
    """The words of a printed command as a shell reads them, taken by the parser of their script."""
    start, run, script, *words = shlex.split(command)
    assert (start, run) == ("uv", "run")
    if script != "tensorboard":
        assert callable(parse(script, words))
    return [script, *words]


def test_commands_of_a_run_in_an_awkward_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / ("long " * 20) / NAME
    run_dir.parent.mkdir()
    source = write_images(tmp_path / "images.npy")
    seen, place = Recorder(), run_dir.as_posix()
    fit(request(run_dir, source, {"training": {"epochs": 1, "samples": {"count": 4}}}), [seen])
    printed = [line.strip() for line in finished_lines(seen.finished) if "uv run" in line]
    assert [words_of(line) for line in printed] == [
        ["diagnose.py", place],
        ["tensorboard", "--logdir", f"{place}/tensorboard"],
    ]

    page = html.unescape((run_dir / "report.html").read_text(encoding="utf-8"))
    shown = [words_of(each) for each in re.findall(r"^(?:<pre[^>]*>)?(?:<code>)?(uv run [^\n<]*)", page, re.MULTILINE)]
    assert {words[1] for words in shown if words[0] == "unified-vae"} >= {"sample", "reconstruct", "export"}
    assert all(any(word.startswith(place) for word in words) for words in shown)

    report = diagnose(run_dir, observer=Recorder())
    assert any(word.startswith(place) for word in words_of(report.recommendation.command))

    listed = (Path(__file__).parents[1] / "golden" / "inventory.txt").read_text(encoding="utf-8")
    optional = dict(re.findall(r"^(?:run|model) file (\S+)( \(.*\))?$", listed, re.MULTILINE))
    expected = {name for name, why in optional.items() if not why or "diagnose" in why}
    assert {_general(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()} == expected

    other = request(run_dir, source, {"model": {"family": "residual"}})
    with pytest.raises(ConfigError) as caught:
        fit(other, [])
    command = re.search(r"uv run .*(?= continues)", str(caught.value))
    assert command and words_of(command[0])[1:] == ["--config", f"{place}/config.json", "--run-dir", place]


def _general(path: Path) -> str:
    """A file of a run as the inventory has it."""
    name = re.sub(r"epoch-\d{4}", "epoch-NNNN", path.as_posix().removeprefix("model/"))
    name = re.sub(r"step-\d{9}", "step-NNNNNNNNN", re.sub(r"images-\w+", "images-HASH", name))
    return re.sub(r"tfevents\..*", "tfevents.*", name)


@pytest.mark.parametrize("launched", [False, True])
def test_the_command_that_goes_on_is_the_one_given(monkeypatch: pytest.MonkeyPatch, launched: bool) -> None:
    if launched:
        for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("LOCAL_WORLD_SIZE", "2"), ("WORLD_SIZE", "4")):
            monkeypatch.setenv(name, value)
    words = ["--run-dir", NAME, "--set", 'data.source="a*b?$HOME"', "--set", "model.latents=4"]
    command = shlex.split(restart_command("my folder/train.py", [*words, "--no-resume"]))
    launcher = ["torchrun", "--nnodes", "2", "--nproc-per-node", "2"] if launched else []
    assert command == ["uv", "run", *launcher, "my folder/train.py", *words]


def test_an_error_keeps_the_spaces_of_a_quoted_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("diagnose.py", [str(tmp_path / "a  b")]) == 2
    assert f"{tmp_path}/a  b is not a folder" in capsys.readouterr().err
