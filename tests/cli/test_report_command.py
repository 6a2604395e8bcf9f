"""The verb `report` at the command line: what it prints, its exit codes, and that the verbs it names are there."""

import json
import re
import subprocess
import sys

import pytest

from unified_vae.cli.door import enter
from unified_vae.cli.main import PROGRAM, VERBS, app


def made(folder, model=False):
    """A run of a config; with a model on demand."""
    (folder / "model").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"seed": 0}}))
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "epoch": 0.1, "loss.total": 2.5}\n')
    if model:
        (folder / "model" / "config.json").write_text(json.dumps({"run": {"step": 1, "trained_steps": 1}}))
    return folder


def test_it_says_where_the_page_is(tmp_path, capsys):
    run = made(tmp_path / "run")
    assert enter(app, PROGRAM, ["report", str(run)]) == 0
    assert f"the page: {(run / 'report.html').as_posix()} (" in capsys.readouterr().out
    both = tmp_path / "pages" / "both.html"
    assert enter(app, PROGRAM, ["report", str(run), str(made(tmp_path / "b")), "--output", str(both)]) == 0
    assert "2 runs compared" in both.read_text()


@pytest.mark.parametrize("words", [["nowhere"], [], ["--output", "x.html"], ["run", "nowhere"]])
def test_bad_input_is_a_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, words):
    made(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert enter(app, PROGRAM, ["report", *words]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: [^\n]+\n", said) and not list(tmp_path.glob("*.html"))


def test_the_verbs_on_a_page_are_those_of_the_command(tmp_path):
    run = made(tmp_path / "run", model=True)
    enter(app, PROGRAM, ["report", str(run)])
    named = set(re.findall(r"uv run unified-vae (\w+)", (run / "report.html").read_text()))
    assert {"sample", "report"} <= named <= {verb.__name__ for verb in VERBS}


def test_no_torch_is_loaded_for_it(tmp_path):
    program = "import sys; from unified_vae.cli.main import main; code = main(); print(code, 'torch' in sys.modules)"
    words = [sys.executable, "-c", program, "report", str(made(tmp_path / "run"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
