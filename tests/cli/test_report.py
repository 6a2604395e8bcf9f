"""The verb `report` at the command line: what it prints, its exit codes, and that the verbs it names are there."""

import json
import re
import subprocess
import sys

import pytest

from unified_vae.cli.app import VERBS, main


def made(folder, model=False):
    """A run of a config; with a model on demand."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"seed": 0}}))
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "epoch": 0.1, "loss.total": 2.5}\n')
    if model:
        (folder / "model" / "config.json").write_text(json.dumps({"run": {"step": 1, "trained_steps": 1}}))
    return folder


def test_it_says_where_the_page_is(tmp_path, capsys):
    run = made(tmp_path / "run", model=True)
    assert main("unified-vae", ["report", str(run)]) == 0
    assert f"the page: {(run / 'report.html').as_posix()} (" in capsys.readouterr().out
    named = set(re.findall(r"uv run unified-vae (\w+)", (run / "report.html").read_text()))
    assert {"sample", "report"} <= named <= set(VERBS)
    assert main("unified-vae", ["report", str(run), str(made(tmp_path / "b"))]) == 2
    assert "unified-vae evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["nowhere"], [], ["--output", "x.html"], ["run", "nowhere"]])
def test_bad_input_is_a_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, argv):
    made(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert main("unified-vae", ["report", *argv]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", error) and not list(tmp_path.glob("*.html"))


def test_no_torch_is_loaded_for_it(tmp_path):
    program = "import sys; from unified_vae.cli.app import main; code = main(); print(code, 'torch' in sys.modules)"
    command = [sys.executable, "-c", program, "report", str(made(tmp_path / "run"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
