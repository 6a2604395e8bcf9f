"""What the documents say is so: commands compose, names exist, the snippet runs, excerpts of the screen are real."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from unified_vae.cli.app import SCRIPTS, VERBS, main, parse
from unified_vae.config.base import field_paths
from unified_vae.config.presets import SECTIONS, PresetBook
from unified_vae.config.run import RunConfig
from unified_vae.config.settings import Settings
from unified_vae.config.upgrade import REMOVED, new_path
from unified_vae.core.run_dir import RunFolder

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "unified_vae"
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
}
README = PAGES["README.md"]
BOOK = PresetBook.load(shipped=ROOT / "config" / "config_unified.json")
TRAINING = ("train.py", "train_unified.py")
PLACEHOLDER = re.compile(r"--(mode|\w+-preset) NAME\b")
OF_OTHER_PROGRAMS = {
    "--extra",
    "--standalone",
    "--nproc-per-node",
    "--logdir",
    "--check",
    "--images",
    "--processes",
    "--requeue",
    "--open-mode",
    "--time",
    "--signal",
}
OF_USERS = (
    "runs/",
    "photos",
    "train/",
    "val/",
    "test/",
    "~",
    "train_fast",
    "train_optimized",
    "train_ultra",
    "train_VAE",
)
VARIABLE = (
    r"\.\.\.|\.\s|'[^']*'|\b\w*\d\w*\b|\b[A-Z]+\b|[(){}%:;,?]|--\w+ \S+|loss\.\w+|hf:|config\.json"  # in a sentence
)
EXAMPLES = {  # files and settings that extending.md makes up, and the file that there shall never be
    "utils.py",
    "src/unified_vae/models/mlp.py",
    "src/unified_vae/data/sources/file_list.py",
    "loss.huber",
    "loss.huber.weight",
}


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of a language, without their indent."""
    result = re.findall(rf"^( *)```{language}\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in result]


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands in `backticks`."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands() -> list[tuple[str, str]]:
    """(page, line) of every command that trains, also under torchrun, but for those with a name left open."""
    lines = []
    for page, text in PAGES.items():
        shell = [line for block in blocks(text, "bash") for line in block.splitlines()]
        lines += [(page, line) for line in [*shell, *quoted(text)]]
    result = [(page, line) for page, line in lines if re.match(r"uv run (torchrun .*)?train(_unified)?\.py", line)]
    return list(dict.fromkeys(entry for entry in result if not PLACEHOLDER.search(entry[1])))


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table whose header line begins with `heading`, without the header."""
    lines = text[text.index(f"| {heading}") :].splitlines()
    rows = lines[2 : next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with what the documents' commands take for granted: images, earlier runs and mine.json."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    mode = BOOK.mode("fast_high_quality")
    run = BOOK.compose(mode.presets, Settings(), mode=mode)
    config = run.config.model_dump(mode="json")
    record = {"config": config, "requested": config, "names": dict(run.names)}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    (tmp_path / "faces128.zip").touch()
    for name in ("fast_high_quality", "NAME"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "mine.json").write_text(blocks(README, "json")[0], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_composes_a_run(page: str, line: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line, comments=True)
    script = next(word for word in words if word in TRAINING)
    given = words[words.index(script) + 1 :]
    if script == "train.py" and not given:  # its name in running text
        return
    code = main(script, [*given, "--dry-run"])
    out, error = capsys.readouterr()
    assert (code, error) == (0, ""), f"{page}: {line}"
    assert "nothing was started" in out or "--list-presets" in given


def test_the_first_commands_are_there() -> None:
    shell = [line for block in blocks(README, "bash") for line in block.splitlines()]
    assert shell[:2] == ["uv run train.py --mode quick_test", "uv run pytest"]
    assert len(commands()) > 15


def test_the_table_of_modes_is_the_preset_book() -> None:
    rows = [[f"`{mode.name}`", mode.description, mode.use_case] for mode in BOOK.modes.values()]
    assert table(README, "Mode ") == rows


def test_the_table_of_presets_is_the_preset_book() -> None:
    columns = zip(*table(README, "`--loss-preset`"), strict=True)
    for kind, column in zip(SECTIONS, columns, strict=True):
        assert {cell.strip("`") for cell in column if cell} == set(BOOK.presets(kind))


def test_every_preset_file_in_the_documents_is_valid(home: Path) -> None:
    result = [block for text in PAGES.values() for block in blocks(text, "json")]
    assert result
    for number, block in enumerate(result):
        path = home / f"example-{number}.json"
        path.write_text(block, encoding="utf-8")
        book = PresetBook.load(extra=path, shipped=ROOT / "config" / "config_unified.json")
        for name in json.loads(block)["modes"]:
            book.compose(book.mode(name).presets, Settings(), mode=book.mode(name))


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page])):
        if not target.startswith(("https://", "#")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    known = {path.name for path in vars(RunFolder(Path("run"))).values()} | {
        "state.json",
        "MANIFEST.json",
        "mine.json",
        "x.npy.json",
        "x.parquet.json",
        "index.json",
        "directions.json",
        "export.json",
        "profile.json",
        "trace.json",
    }
    places = [ROOT, PACKAGE, (ROOT / page).parent, PACKAGE / "losses", ROOT / "tests" / "losses"]
    for word in quoted(PAGES[page]):
        is_path = re.fullmatch(r"[\w.-]+(/[\w.-]+)*(\.(py|md|toml|json)|/)", word)
        if is_path and word.rstrip("/") not in known and word not in EXAMPLES and not word.startswith(OF_USERS):
            assert any((place / word).exists() for place in places), f"{page} names {word}"


def test_every_file_in_the_tree_of_the_architecture_exists() -> None:
    tree = next(block for block in blocks(PAGES["docs/architecture.md"], "text") if "src/unified_vae/" in block)
    everywhere = {path.name for path in ROOT.glob("*")} | {path.name for path in (ROOT / "src").rglob("*.py")}
    everywhere |= {path.name for path in (ROOT / "docs").iterdir()}
    rooms = [path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    for name in re.findall(r"[\w./]+\.(?:py|md|json)\b", tree):
        assert Path(name).name in everywhere or (ROOT / name).exists(), name
    assert all(f"  {room}/ " in tree for room in rooms)


def test_every_function_of_the_batch_s_day_exists() -> None:
    day = next(block for block in blocks(PAGES["docs/architecture.md"], "text") if "pipeline.fit.fit" in block)
    rooms = r"cli|pipeline|training|losses"
    names = re.findall(rf"\b((?:{rooms})\.\w+)((?:\.\w+)+)", day)
    assert len(names) > 15
    for module, inner in names:
        text = (PACKAGE / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        for name in inner.strip(".").split("."):
            assert re.search(rf"(def|class) {name}\b", text), f"{module}{inner}"


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page: str) -> None:
    known = set(field_paths(RunConfig))
    for word in quoted(PAGES[page]):
        for path in re.findall(r"\b(?:loss|training|model|data)\.[a-z_]+(?:\.[a-z_]+)*\b", word):
            is_other = path.endswith((".safetensors", ".py", ".total", ".nll")) or path in EXAMPLES
            is_other = is_other or (page == "CHANGELOG.md" and (path in REMOVED or new_path(path) is not None))
            if page == "docs/log.md":  # its commands are those of their day
                path = new_path(path) or path
            assert is_other or "there is no setting" in word or path in known, f"{page} names {path}"


def test_every_diagnosis_that_is_named_can_be_asked_for() -> None:
    shell = [line for text in PAGES.values() for block in blocks(text, "bash") for line in block.splitlines()]
    lines = [line for line in shell if line.startswith("uv run diagnose.py")]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line, comments=True)[3:]
        assert callable(parse("diagnose.py", words)), line


def test_every_verb_that_is_named_can_be_asked_for() -> None:
    shell = [line for text in PAGES.values() for block in blocks(text, "bash") for line in block.splitlines()]
    lines = [line for line in shell if line.startswith("uv run unified-vae ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)[3:]
        assert callable(parse("unified-vae", words)), line


def test_every_option_that_is_named_exists(capsys: pytest.CaptureFixture[str]) -> None:
    known = set(OF_OTHER_PROGRAMS)
    for script in SCRIPTS:
        assert main(script, ["--help"]) == 0
    for verb in VERBS:
        assert main("unified-vae", [verb, "--help"]) == 0
    known |= set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) | {"--help"}
    for page, text in PAGES.items():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*\b", " ".join([*quoted(text), *blocks(text, "bash")])):
            assert option in known, f"{page} names {option}"


def test_the_excerpts_of_the_screen_are_real(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plain(line: str) -> str:
        return " ".join(line.split())

    assert main("train.py", ["--mode", "fast_high_quality", "--beta", "4", "--dry-run"]) == 0
    screen = {plain(line) for line in capsys.readouterr().out.splitlines()}
    dry_run = next(block for block in blocks(README, "text") if block.startswith("* "))
    assert {plain(line) for line in dry_run.splitlines()} <= screen
    assert main("train.py", ["--mode", "quick_test", "--set", "loss.kl.wieght=2"]) == 2
    assert capsys.readouterr().err in blocks(README, "text")


def test_every_error_in_the_troubleshooting_is_in_the_source() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # sentences that are broken into lines
    source = re.sub(r"\{[^{}\n]*\}", "\0", source)  # what is filled in may be any word
    section = PAGES["docs/troubleshooting.md"].split("## Error messages")[1]
    sentences = [words for row in re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE) for words in quoted(row)]
    assert len(sentences) > 40
    for sentence in sentences:
        words = sentence.removeprefix("error: ").removeprefix("note: ")
        pieces = re.split(VARIABLE, words)
        for piece in (piece.strip() for piece in pieces):
            if len(piece.split()) > 1:
                assert is_said(piece, source), f"{sentence!r}: {piece!r} is said nowhere"


def is_said(piece: str, source: str) -> bool:
    """Whether the words stand in the source, one of them perhaps filled in there."""
    words = piece.split()
    pattern = r"\s".join(f"(?:{re.escape(word)}|\0)" for word in words)
    return any(result.count("\0") <= len(words) // 3 for result in re.findall(pattern, source))


def test_the_newcomer_s_script_runs_as_written(home: Path) -> None:
    from PIL import Image

    from unified_vae.config.model import ConvConfig
    from unified_vae.models.build import build_model
    from unified_vae.models.pretrained import save_pretrained

    config = ConvConfig(image_size=16, latents=4, base_channels=4, channels=3)
    model = build_model(config, seed=0)
    save_pretrained(home / "runs" / "fast_high_quality" / "model", config, model.state_dict(), {})
    Image.new("RGB", (40, 30), "teal").save(home / "photo.jpg")
    script = blocks(README, "python")[0]
    assert len(script.splitlines()) <= 15
    (home / "script.py").write_text(script, encoding="utf-8")
    subprocess.run([sys.executable, "script.py"], check=True, cwd=home)
    sizes = {name: Image.open(home / name).size for name in ("reconstruction.png", "samples.png", "walk.gif")}
    assert sizes == {"reconstruction.png": (16, 16), "samples.png": (70, 70), "walk.gif": (16, 16)}
    assert Image.open(home / "walk.gif").n_frames > 1
    kept = home / "runs" / "fast_high_quality" / "model" / "model.safetensors"
    assert (home / "my_model" / "model.safetensors").read_bytes() == kept.read_bytes()
