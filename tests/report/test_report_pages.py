"""Pages of runs: valid, complete, harmless, and written whatever is missing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import html5lib
import pytest

from tests.report.run_folders import CONFIG, bare_run, draw, kept_diagnosis, validation, whole_run, write_rows
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.files import ancestor
from unified_vae.report import page as made
from unified_vae.report import plots
from unified_vae.report.page import duration, text, write_report

XHTML = "{http://www.w3.org/1999/xhtml}"
NASTY = "<script>alert('x')</script>&amp;\"'\x1b[31m\u202e{{ 7 * 7 }}"


def page(run: Path) -> str:
    """The report of a run."""
    return write_report(run).read_text(encoding="utf-8")


def parsed(html: str):
    """Its tree; fails where the HTML is not valid to the letter."""
    return html5lib.HTMLParser(strict=True).parse(html)


def words(html: str) -> str:
    """What a reader sees."""
    body = parsed(html.replace("<wbr>", "")).find(f"{XHTML}body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


@pytest.fixture
def no_charts(monkeypatch):
    """Leaves the curves out, which take most of the time."""
    monkeypatch.setattr(plots, "run_charts", lambda run: [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, str]:
    """A finished run with everything that one leaves, and its page."""
    run = whole_run(tmp_path_factory.mktemp("whole") / "run")
    return run, page(run)


def test_all_that_was_measured_is_on_the_page(whole):
    seen = words(whole[1])
    for name, value in validation(30, 21.28125).items():  # the step that was exported, not the last one
        assert name == "split" or f"{name} {text(value)}" in seen
    expected = ["21.28 dB", "+1.28 dB", "+9.78 dB", "0.44", "47.1 nats", "5.406", "13 of 32", "80 images/s", "8 s"]
    expected += ["Finished after 40 steps (4 epochs)"]
    assert [each for each in expected if each not in seen] == []


def test_a_mix_of_losses_has_no_bits_per_dimension(tmp_path, no_charts):
    loss = {"mse": {"weight": 1.0}, "l1": {"weight": 0.5}, "kl": {"weight": 2.0}}
    seen = words(page(whole_run(tmp_path / "run", config={**CONFIG, "loss": loss})))  # as versions of before logged it
    assert "21.28 dB" in seen and not re.search(r"bits|5\.406|\bnll\b|-400", seen)


def test_settings_data_machine_and_commands_are_on_the_page(whole):
    run, seen = whole[0], words(whole[1])
    expected = ["loss.mse.weight 1 loss preset mse_l1 (book.json)", "training.epochs 4 --epochs", "model.family conv"]
    expected += ["broken.png it ends too early", "7 loss.mse odd.png", "perceptual haarpsi no weights", "gpu a GPU"]
    expected += [f"VAE.from_pretrained({(run / 'model').as_posix()!r})", f"uv run unified-vae diagnose {run}"]
    expected += ["Latents of 160 training images: (z - 0.25) * 1.5 has unit variance.", "Folder photos: 160 to train."]
    assert [each for each in expected if each not in seen] == []


def test_choices_come_before_defaults(whole):
    folded = whole[1].index("settings at their defaults")
    assert whole[1].index("loss preset mse_l1 (") < folded < whole[1].index("seed</th>")


def test_nothing_is_loaded_from_anywhere(whole):
    tree = parsed(whole[1])
    assert not re.search(r"https?://|@import|url\((?!#)|<script|<iframe|<object", whole[1])
    for element in tree.iter():
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert element.get(name, "#").startswith(("#", "data:"))
    policy = [each.get("content") for each in tree.iter(f"{XHTML}meta") if each.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_image_and_chart_says_what_it_shows(whole):
    tree = parsed(whole[1])
    images = list(tree.iter(f"{XHTML}img"))
    assert len(images) == 2 and all(len(image.get("alt")) > 10 for image in images)
    charts = [each for each in tree.iter() if each.get("role") == "img"]
    assert len(charts) == 7 and all(len(each.get("aria-label")) > 10 for each in charts)
    assert len(list(tree.iter("{http://www.w3.org/2000/svg}svg"))) == 7


def test_the_newest_image_grids_are_shown(whole):
    seen = words(whole[1])
    assert "epoch-0004-reconstructions.png" in seen and "final-samples.png" in seen
    assert "epoch-0003" not in seen and "epoch-0004-samples" not in seen


def test_links_within_the_page_lead_somewhere(whole):
    tree = parsed(whole[1])
    ids = [each.get("id") for each in tree.iter() if each.get("id")]
    links = [each.get("href") for each in tree.iter() if each.get("href", "").startswith("#")]
    assert len(ids) == len(set(ids)) and len(links) > 20 and {link[1:] for link in links} <= set(ids)


def evaluated(name: str) -> str:
    """As `evaluate` writes it."""
    rows = [
        {"title": name, "value": 30.5, "unit": "dB", "interval_95": [30.25, 30.75], "evaluator": name, "images": 160},
        {"title": "FID", "value": None, "missing": "its weights cannot be had"},
    ]
    return json.dumps({"format": 1, "subject": name, "images": {"description": name}, "weights": {"ema": rows}})


def nasty_run(folder: Path) -> Path:
    """Every text that a stranger may have written, at its worst."""
    config = {"data": {"source": NASTY}, NASTY: NASTY, "training": {"epochs": NASTY, "batch_size": NASTY}}
    named = {
        "names": {NASTY: NASTY},
        "environment": {NASTY: NASTY},
        "substitutions": [[NASTY] * 3],
        "origins": {NASTY: NASTY},
    }
    run = whole_run(folder, config=config, data={"description": NASTY, "fingerprint": NASTY}, **named)
    (run / "quarantine.txt").write_text(f"{NASTY}\t{NASTY}\n")
    write_rows(run / "skipped.jsonl", [{"step": 1, "not_finite": [NASTY], "images": [NASTY]}])
    write_rows(run / "metrics.jsonl", [{**validation(30, 20.0), NASTY: 1.0}])
    (run / "diagnosis.json").write_text(kept_diagnosis(NASTY, 30))
    (run / "evaluation.json").write_text(evaluated(NASTY))
    return run


def test_a_stranger_can_write_no_markup(tmp_path, no_charts):
    run = nasty_run(tmp_path / "<script>alert(1)<∕script> & b 'c' \"d\" ünï ☃ {{ 7 * 7 }}")
    html = page(run)
    tree = parsed(html)
    assert not list(tree.iter(f"{XHTML}script"))
    assert "<script>alert('x')</script>" in "".join(tree.itertext())  # said, not done
    assert "{{ 7 * 7 }}" in html and "\x1b" not in html and "\u202e" not in html


def test_an_evaluation_beside_the_run_is_shown(tmp_path, no_charts):
    run = whole_run(tmp_path / "run")
    (run / "evaluation.json").write_text(evaluated("PSNR of all pixels"))
    seen = words(page(run))
    assert "PSNR of all pixels 30.5 dB 30.25 to 30.75 PSNR of all pixels, 160 images" in seen
    assert "Not measured: 1 Not measured of the averaged weights metric why FID its weights cannot be had" in seen


def test_a_run_of_a_config_and_one_row_has_its_page(tmp_path, no_charts):
    run = bare_run(tmp_path / "run")
    seen = words(page(run))
    assert "Not finished: 10 steps (1 epochs)" in seen and "There is no model yet" in seen
    assert "loss.total 0.9" in seen and "There is no diagnosis yet. A run writes one at its end; this looks" in seen
    (run / "metrics.jsonl").unlink()
    assert "Nothing was validated yet." in words(page(run))


DAMAGED = b'\xff\x00{"step": 1}\n{"step": "x"}\n[1]\nnull\n{"split": "validation", "step": 3, "psnr": null}\n'
DAMAGED += b'{"step": 1' + b"0" * 400 + b"}\n" + b"[" * 100_000 + b'\n{"st'


FILES = ("metrics.jsonl", "timing.jsonl", "skipped.jsonl", "quarantine.txt", "model", "samples")


@pytest.mark.parametrize("name", FILES)
def test_a_page_lacks_only_what_the_folder_lacks(tmp_path, name, no_charts):
    run = whole_run(tmp_path / "run")
    (run / name).rename(run / "elsewhere")
    assert "loss preset mse_l1" in words(page(run))
    (run / name).write_bytes(DAMAGED)
    assert "loss preset mse_l1" in words(page(run))


def test_a_run_of_damaged_files_has_its_page(tmp_path):
    run = whole_run(tmp_path / "run")
    for name in (*FILES, "evaluation.json", "diagnosis.json", "closing.json"):
        if (run / name).is_dir():
            (run / name).rename(run / f"earlier-{name}")
        (run / name).write_bytes(DAMAGED)
    assert "loss preset mse_l1" in words(page(run))


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"x": [None]}, {"latents": "x", "predicted": 3, "psnr_pca": [1]}])
def test_entries_of_other_shapes_leave_a_gap(tmp_path, value, no_charts):
    names = ("origins", "names", "data", "environment", "preflight", "substitutions", "steps_per_epoch")
    run = whole_run(tmp_path / "run", **dict.fromkeys(names, value))
    kept = {"subject": value, "images": value, "weights": {"ema": [value], "raw": value}}
    (run / "evaluation.json").write_text(json.dumps(kept))
    (run / "diagnosis.json").write_text(json.dumps({"cause": value, "evidence": [value], "step": value}))
    write_rows(run / "skipped.jsonl", [{"step": 1, "not_finite": value, "images": value}])
    assert "training.epochs" in words(page(run))


def test_a_damaged_image_is_named_and_the_others_are_shown(tmp_path, no_charts):
    run = whole_run(tmp_path / "run")
    (run / "samples" / "final-samples.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    html = page(run)
    assert "The image final-samples.png cannot be read" in words(html)
    assert len(list(parsed(html).iter(f"{XHTML}img"))) == 1


def test_large_images_are_made_to_fit(tmp_path, no_charts, monkeypatch):
    run = whole_run(tmp_path / "run")
    monkeypatch.setattr(made, "IMAGE_BYTES", 100_000)
    for name in ("final-samples", "epoch-0009-reconstructions"):
        draw(run / "samples" / f"{name}.png", (500, 300))  # noise: 170 kB as PNG
    assert sum(path.stat().st_size for path in (run / "samples").iterdir()) > 300_000
    html = page(run)
    assert len(html.encode()) < 4 / 3 * 100_000 + 50_000 and html.count("data:image/webp") == 2


def test_an_image_that_fits_is_embedded_to_the_bit(tmp_path):
    import base64

    draw(path := tmp_path / "samples" / "a.png")
    uri, width, height = plots.embed_image(path, 100_000)
    assert (width, height) == (64, 32)
    assert uri == f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def test_the_newer_diagnosis_is_shown_if_it_is_not_outdated(tmp_path, no_charts):
    run = whole_run(tmp_path / "run")
    (run / "closing.json").write_text(kept_diagnosis("prior mismatch", 40))
    draw(run / "diagnosis.png")
    assert "Prior mismatch. More of it. uv run it" in words(page(run)) and "diagnosis.png" not in page(run)
    (run / "diagnosis.json").write_text(kept_diagnosis("healthy", 30))
    os.utime(run / "closing.json", (1, 1))
    seen = words(page(run))
    assert "Healthy." in seen and "from the weights of step 30" in seen and "diagnosis.png" in seen
    (run / "diagnosis.json").unlink()
    (run / "closing.json").write_text(kept_diagnosis("prior mismatch", 20))  # the run has gone on to 40 since
    assert "Prior mismatch." not in words(page(run))


def test_what_a_run_is_named_by_does_not_change_its_page(tmp_path, monkeypatch, no_charts):
    run = whole_run(tmp_path / "runs" / "mine")
    (run / "model" / "model.safetensors").touch()
    (run / "checkpoints" / "step-000000040").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    targets = [Path("runs/mine") / inside for inside in ("", "model", "./model", "checkpoints/step-000000040")]
    assert {write_report(target) for target in targets} == {Path("runs/mine/report.html")}
    pages = {re.sub("Written [-0-9]+ [0-9:]+ UTC", "", page(target)) for target in targets}
    assert len(pages) == 1 and str(tmp_path) not in pages.pop()
    monkeypatch.chdir(run / "model")
    assert ancestor(Path(), 1) == run
    monkeypatch.chdir(run)
    assert ancestor(Path("model"), 1) == ancestor(Path("checkpoints/step-000000040"), 2) == run, "not `.`"
    monkeypatch.chdir(tmp_path / "runs")
    assert ancestor(run / "model", 1) == run and ancestor(Path("mine/model"), 1) == Path("mine")


def test_wrong_folders_are_named_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, config in (("words", "{not json"), ("list", "[1]"), ("other", '{"config": 3}'), ("deep", "[" * 100_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    for name in ("nowhere", "empty", "file", "words", "list", "other", "deep"):
        with pytest.raises(ConfigError, match=name):
            write_report(tmp_path / name)


def test_wrong_outputs_are_named_in_a_sentence(tmp_path, no_charts):
    run = whole_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a folder"):
        write_report(run, tmp_path)
    with pytest.raises(EnvironmentProblem, match="give another --output"):
        write_report(run, run / "config.json" / "page.html")


@pytest.mark.parametrize(("seconds", "words"), [(48.4, "48 s"), (720, "12 min"), (11_100, "3 h 05 min"), (0, "0 s")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
