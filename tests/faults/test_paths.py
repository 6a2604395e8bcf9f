"""Odd names of runs and images: they work, there and back; names that cannot be are one sentence."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.helpers.archives import zipped
from tests.helpers.disks import obey_permissions
from tests.helpers.faults import NoReport, injected
from tests.helpers.forks import in_a_fork
from tests.helpers.images import png, write_files
from tests.helpers.runs import SETTINGS, merged
from unified_vae.cli.app import main
from unified_vae.core.files import LONGEST_NAME, with_affixes
from unified_vae.models.pretrained import load_pretrained

PICTURES = {f"{n}.png": png(n, 16) for n in range(12)}
NAMES = {
    "spaces": " a b  c ",
    "quotes": 'it\'s "so" $HOME$ `x` *.png;# {a}%s\\',
    "unicode": "ünïcode 图 🙂 e\u0301",
    "250 letters": "n" * 250,
    "250 bytes": "图" * 83 + "n",
    "no text": os.fsdecode(b"\xff\xfe"),
    "dashes": "--data",
    "escape": "\x1b[31mred",
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny run's settings, in a current folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIFIED_VAE_CACHE", str(tmp_path / "cache"))
    short = merged(SETTINGS, {"training": {"epochs": 1, "samples": {"count": 2}}})
    (tmp_path / "mine.json").write_text(json.dumps(short))
    return tmp_path / "mine.json"


@pytest.fixture(scope="module")
def covered():
    """What was gone through, for the table."""
    done: list[str] = []
    yield done
    report(
        fault="names of runs and images: spaces, quotes, Unicode, 250 letters, no text, ...",
        target="trains, goes on, is loaded and diagnosed",
        result=f"{len(done)} of {len(NAMES)}",
    )


def train(data: str, run_dir: str, *more: str) -> int:
    with injected(NoReport()):
        return main("train_unified.py", [f"--data={data}", f"--run-dir={run_dir}", "--config=mine.json", *more])


@pytest.mark.figure
@pytest.mark.skipif(sys.platform != "linux", reason="file systems of other systems refuse some of the names")
@pytest.mark.parametrize("kind", NAMES)
def test_a_run_goes_there_and_back(
    kind: str, settings: Path, covered: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = NAMES[kind]
    images = write_files(settings.with_name("of") / (name if name.isprintable() else "plain"), PICTURES)
    run_dir = Path("runs") / name
    assert train(str(images), str(run_dir)) == 0, capsys.readouterr().err
    assert train(str(images), str(run_dir), "--epochs", "2") == 0, capsys.readouterr().err
    assert train(str(images), str(run_dir), "--epochs", "2") == 0
    assert "already" in capsys.readouterr().out
    assert load_pretrained(run_dir / "model").latents == 4
    assert main("unified-vae", ["report", "--", str(run_dir)]) == 0, capsys.readouterr().err
    assert main("diagnose.py", ["--", str(run_dir)]) == 0, capsys.readouterr().err
    assert train(str(images), str(run_dir), "--no-resume") == 0, capsys.readouterr().err
    assert len([entry for entry in Path("runs").iterdir() if not entry.name.startswith(".")]) == 2
    if len(os.fsencode(name)) < 250 and name.isprintable():
        archive = zipped(settings.with_name(f"{name}.zip"), PICTURES)
        assert train(str(archive), "runs/zip") == 0, capsys.readouterr().err
    covered.append(kind)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_links_to_the_run_and_the_images(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(settings.with_name("images"), PICTURES)
    (settings.with_name("far") / "run").mkdir(parents=True)
    settings.with_name("link to images").symlink_to("images")
    settings.with_name("link to run").symlink_to(Path("far") / "run")
    assert train("link to images", "link to run") == 0, capsys.readouterr().err
    assert (settings.with_name("far") / "run" / "model" / "model.safetensors").is_file()
    assert train("images", "far/run") == 0
    assert "already" in capsys.readouterr().out
    assert sorted(path.name for path in settings.with_name("far").iterdir() if path.name[0] != ".") == ["run"]


@pytest.mark.parametrize(
    ("data", "run_dir", "words", "code"),
    [
        ("~nobody-of-that-name/x", "run", "home of that user is not known", 2),
        ("n" * 300, "run", "no file or folder", 2),
        ("a/" * 900, "run", "a/a... (1,802 letters)", 2),
        ("loop", "run", "no file or folder", 2),
        (NAMES["no text"], "run", "bytes that are no text", 2),
        ("images", "n" * 300, "File name too long", 3),
        ("images", "loop", "Too many levels of symbolic links", 3),
        ("images", "mine.json", "is a file, and a run is a folder", 3),
        ("images", "mine.json/run", "cannot be written", 3),
        ("images", "images", "are the same folder", 2),
        ("mine.json", "run", "of no kind that can be read", 2),
        ("pipe.zip", "run", "of no kind that can be read", 2),
        ("/dev/null", "run", "of no kind that can be read", 2),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_paths_that_cannot_be_are_one_sentence(
    data: str, run_dir: str, words: str, code: int, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(settings.with_name("images"), PICTURES)
    settings.with_name("loop").symlink_to("loop")
    os.mkfifo("pipe.zip")
    assert train(data, run_dir) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert words in error
    if code == 2:
        assert train(data, run_dir, "--dry-run") == 2
        assert words in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
@pytest.mark.parametrize(("place", "words"), [("shut", "cannot be read"), ("shut/in.zip", "cannot be accessed")])
def test_images_that_may_not_be_read_are_reported_by_a_dry_run(place: str, words: str, settings: Path) -> None:
    Path("shut").mkdir()
    zipped(Path("shut") / "in.zip", PICTURES)
    Path("shut").chmod(0)

    def dry_run() -> tuple[int, str]:
        obey_permissions()
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            return train(place, "run", "--dry-run"), said.getvalue()

    code, error = in_a_fork(dry_run)
    Path("shut").chmod(0o755)
    assert code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize("form", ["loop", "folder", "pipe", "n" * 300, "mine.json/inside"])
@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_a_config_that_is_no_file_is_one_sentence(form: str, settings: Path, capsys) -> None:
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    assert main("train.py", ["--mode", "quick_test", "--config", form, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {form}") and error.count("\n") == 1


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path: Path, monkeypatch, capsys) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code = main("train.py", ["--mode", "quick_test"])
    monkeypatch.chdir(tmp_path)
    assert code == 3
    assert "the current folder was deleted" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["short", "n" * 250, "图" * 83, "x" * 255])
def test_names_made_from_names_are_never_too_long(name: str, tmp_path: Path) -> None:
    made = with_affixes(tmp_path / name, ".", ".holder.json")
    assert len(os.fsencode(made.name)) <= LONGEST_NAME
    assert made.name.startswith(".") and made.name.endswith(".holder.json")
    made.touch()
    assert made != with_affixes(tmp_path / (name[:-1] + "y"), ".", ".holder.json")


def test_a_too_long_name_of_a_run_to_fix_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train.py", ["--mode", "resume_fix", "--run-dir", "a" * 5000]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is no run to fix in aaa") and error.count("\n") == 1 and len(error) < 1000
