"""Pages of runs: valid, complete, harmless, and the same file whatever is missing."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import html5lib
import pytest
from made_runs import CONFIG, bare_run, draw, kept_diagnosis, validation, whole_run, write_rows

from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.core.paths import above
from unified_vae.experiment.report import page as made
from unified_vae.experiment.report import pictures
from unified_vae.experiment.report.figures import plain
from unified_vae.experiment.report.write import ReportRequest, report

XHTML = "{http://www.w3.org/1999/xhtml}"
NASTY = "<script>alert('x')</script>&amp;\"'\x1b[31m\u202e"


def page(*runs: Path, output: Path | None = None) -> str:
    """The page of some runs."""
    return report(ReportRequest(runs, output)).path.read_text(encoding="utf-8")


def parsed(text: str):
    """Its tree; fails where the HTML is not valid to the letter."""
    return html5lib.HTMLParser(strict=True).parse(text)


def words(text: str) -> str:
    """What a reader sees."""
    body = parsed(text.replace("<wbr>", "")).find(f"{XHTML}body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


def test_all_that_was_measured_is_on_the_page(tmp_path):
    text = words(page(whole_run(tmp_path / "run")))
    for name, value in validation(30, 21.28125).items():  # the step that was exported, not the last one
        assert name == "split" or f"{name} {plain(value)}" in text
    for said in ("21.28 dB", "+1.28 dB", "+9.78 dB", "0.44", "47.1 nats", "5.406", "13 of 32", "80 images/s", "8 s"):
        assert said in text
    assert "Finished after 40 steps (4 epochs)" in text


def test_a_mix_of_losses_has_no_bits_per_dimension(tmp_path):
    loss = {"mse": {"weight": 1.0}, "l1": {"weight": 0.5}, "kl": {"weight": 2.0}}
    text = words(page(whole_run(tmp_path / "run", config={**CONFIG, "loss": loss})))  # as versions of before logged it
    assert "21.28 dB" in text and not re.search(r"bits|5\.406|\bnll\b|-400", text)


def test_settings_images_machine_and_the_way_on_are_on_the_page(tmp_path):
    run = whole_run(tmp_path / "run")
    text = words(page(run))
    said = ["loss.mse.weight 1 loss preset mse_l1 (book.json)", "training.epochs 4 --epochs", "model.family conv"]
    said += ["broken.png it ends too early", "7 loss.mse odd.png", "perceptual haarpsi no weights", "gpu a GPU"]
    said += [f"VAE.from_pretrained({(run / 'model').as_posix()!r})", f"uv run unified-vae diagnose {run}"]
    said += ["Latents of 160 training images: (z - 0.25) * 1.5 has unit variance."]
    assert [each for each in said if each not in text] == []


def test_choices_come_before_defaults(tmp_path):
    text = page(whole_run(tmp_path / "run"))
    folded = text.index("settings at their defaults")
    assert text.index("loss preset mse_l1 (") < folded < text.index("seed</th>")


@pytest.mark.parametrize("make", [bare_run, whole_run])
def test_nothing_is_loaded_from_anywhere(tmp_path, make):
    text = page(make(tmp_path / "run"))
    assert not re.search(r"https?://|@import|url\(|<script|<iframe|<object", text)
    for element in parsed(text).iter():
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert element.get(name, "#").startswith(("#", "data:"))
    policy = [each.get("content") for each in parsed(text).iter(f"{XHTML}meta") if each.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_picture_says_what_it_shows(tmp_path):
    tree = parsed(page(whole_run(tmp_path / "run")))
    images = list(tree.iter(f"{XHTML}img"))
    assert len(images) == 2 and all(len(image.get("alt")) > 10 for image in images)
    drawn = [each for each in tree.iter() if each.get("role") == "img"]
    assert len(drawn) == 7 and all(len(each.get("aria-label")) > 10 for each in drawn)


def test_the_newest_sheets_are_shown(tmp_path):
    text = words(page(whole_run(tmp_path / "run")))
    assert "epoch-0004-reconstructions.png" in text and "final-samples.png" in text
    assert "epoch-0003" not in text and "epoch-0004-samples" not in text


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


def evaluated(name: str) -> str:
    """As `evaluate` writes it."""
    rows = [
        {"title": name, "value": 30.5, "unit": "dB", "interval_95": [30.25, 30.75], "evaluator": name, "images": 160},
        {"title": "FID", "value": None, "missing": "its weights cannot be had"},
    ]
    return json.dumps({"format": 1, "subject": name, "images": {"description": name}, "weights": {"ema": rows}})


@pytest.mark.parametrize("folder", ["<script>alert(1)</script>", "a & b 'c' \"d\"", "ünï ☃"])
def test_a_stranger_can_write_no_markup(tmp_path, folder):
    run = nasty_run(tmp_path / folder.replace("/", "∕"))
    for text in (page(run), page(run, run, output=tmp_path / "both.html")):
        tree = parsed(text)
        assert not list(tree.iter(f"{XHTML}script")) and not list(tree.iter(f"{XHTML}b<"))
        assert "<script>alert('x')</script>" in "".join(tree.itertext())  # said, not done
        assert "\x1b" not in text and "\u202e" not in text


def test_an_evaluation_beside_the_run_is_shown(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "evaluation.json").write_text(evaluated("PSNR of all pixels"))
    text = words(page(run))
    assert "PSNR of all pixels 30.5 dB 30.25 to 30.75 PSNR of all pixels, 160 images" in text
    assert "Not measured: 1 Not measured of the averaged weights figure why FID its weights cannot be had" in text
    assert "PSNR of all pixels 30.5 dB —" in words(page(run, whole_run(tmp_path / "b"), output=tmp_path / "c.html"))


def test_a_run_of_a_config_and_one_row_has_its_page(tmp_path):
    text = words(page(bare_run(tmp_path / "run")))
    assert "Not finished: 10 steps (1 epochs)" in text and "There is no model yet" in text
    assert "loss.total 0.9" in text


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "timing.jsonl", "skipped.jsonl", "quarantine.txt", "model", "samples"]
)
def test_a_page_lacks_only_what_the_folder_lacks(tmp_path, name):
    run = whole_run(tmp_path / "run")
    path = run / name
    path.rename(run / "elsewhere")
    assert "loss preset mse_l1" in words(page(run))
    path.write_bytes(
        b'\xff\x00{"step": 1}\n{"step": "x"}\n[1]\nnull\n{"split": "validation", "step": 3, "psnr": null}\n{"st'
    )
    assert "loss preset mse_l1" in words(page(run))


@pytest.mark.parametrize("value", [None, 1, "x", [1], {"x": [None]}, {"latents": "x", "predicted": 3, "psnr_pca": [1]}])
@pytest.mark.parametrize("name", ["origins", "names", "data", "environment", "preflight", "substitutions"])
def test_entries_of_other_shapes_leave_a_gap(tmp_path, name, value):
    assert "training.epochs" in words(page(whole_run(tmp_path / "run", **{name: value})))


def test_a_damaged_picture_is_named_and_the_others_are_shown(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "samples" / "final-samples.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    text = page(run)
    assert "The picture final-samples.png cannot be read" in words(text)
    assert len(list(parsed(text).iter(f"{XHTML}img"))) == 1


def test_large_sheets_are_made_to_fit(tmp_path):
    run = whole_run(tmp_path / "run")
    for name in ("final-samples", "epoch-0009-reconstructions"):
        draw(run / "samples" / f"{name}.png", (1500, 800))  # noise: 3 MB as PNG
    assert sum(path.stat().st_size for path in (run / "samples").iterdir()) > 3_000_000
    assert len(page(run).encode()) < 4 / 3 * pictures.ROOM + 150_000 < 2_000_000


def test_a_sheet_that_fits_is_embedded_to_the_bit(tmp_path):
    run = whole_run(tmp_path / "run")
    path = run / "samples" / "final-samples.png"
    kind, data, size = pictures.embedded(path, 100_000)
    assert (kind, data, size) == ("png", path.read_bytes(), (64, 32))


def test_the_newer_diagnosis_is_shown_and_one_of_an_earlier_end_is_not(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "closing.json").write_text(kept_diagnosis("prior mismatch", 40))
    assert "Prior mismatch. More of it. uv run it" in words(page(run))
    (run / "diagnosis.json").write_text(kept_diagnosis("healthy", 30))
    os.utime(run / "closing.json", (1, 1))
    assert "Healthy." in words(page(run)) and "from the weights of step 30" in words(page(run))
    (run / "diagnosis.json").unlink()
    (run / "closing.json").write_text(kept_diagnosis("prior mismatch", 20))  # the run has gone on to 40 since
    assert "Prior mismatch." not in words(page(run))


def test_several_runs_side_by_side(tmp_path):
    first = whole_run(tmp_path / "first")
    second = whole_run(tmp_path / "second", psnr=25.0, config={"model": {"latents": 64}, "training": {"epochs": 4}})
    text = page(first, second, bare_run(tmp_path / "third"), output=tmp_path / "compared.html")
    said = words(text)
    assert "PSNR 21.28 dB 25.00 dB —" in said and "model.latents 32 64 32" in said
    assert "training.epochs 4" not in said  # the same in all
    assert {f"{tmp_path.as_posix()}/{name}" for name in ("first", "second", "third")} <= set(said.split())
    assert "Not all of these runs saw the same images" in said
    names = [each.text for each in parsed(text).iter() if "name" in each.get("class", "").split()]
    assert {"A", "B"} <= set(names)


def test_runs_on_the_same_images_get_no_warning(tmp_path):
    both = whole_run(tmp_path / "a"), whole_run(tmp_path / "b")
    said = words(page(*both, output=tmp_path / "compared.html"))
    assert "same images" not in said and "All settings are the same." in said


def test_a_checkpoint_or_a_model_names_its_run(tmp_path):
    run = whole_run(tmp_path / "run")
    (run / "model" / "model.safetensors").touch()
    (run / "checkpoints" / "step-000000040").mkdir(parents=True)
    for inside in ("model", "checkpoints/step-000000040"):
        assert report(ReportRequest([run / inside])).path == run / "report.html"


def test_what_a_run_is_named_by_does_not_change_its_page(tmp_path, monkeypatch):
    run = whole_run(tmp_path / "runs" / "mine")
    (run / "model" / "model.safetensors").touch()
    (run / "checkpoints" / "step-000000040").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(made, "_written", lambda: "")  # the minute may change between two pages
    texts = {page(Path("runs/mine") / inside) for inside in ("", "model", "./model", "checkpoints/step-000000040")}
    assert len(texts) == 1 and str(tmp_path) not in texts.pop()
    monkeypatch.chdir(run / "model")
    assert above(Path(), 1) == run
    monkeypatch.chdir(run)
    assert above(Path("model"), 1) == above(Path("checkpoints/step-000000040"), 2) == run, "not `.`"
    monkeypatch.chdir(tmp_path / "runs")
    assert above(run / "model", 1) == run and above(Path("mine/model"), 1) == Path("mine")


def test_wrong_folders_are_named_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, config in (("words", "{not json"), ("list", "[1]"), ("other", '{"config": 3}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    for name in ("nowhere", "empty", "file", "words", "list", "other"):
        with pytest.raises(ConfigError, match=name):
            report(ReportRequest([tmp_path / name]))


def test_wrong_outputs_are_named_in_a_sentence(tmp_path):
    run = whole_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a folder"):
        report(ReportRequest([run], tmp_path))
    with pytest.raises(EnvironmentProblem, match="give another --output"):
        report(ReportRequest([run], run / "config.json" / "page.html"))
    with pytest.raises(ConfigError, match="at most 26"):
        report(ReportRequest([run] * 27))
