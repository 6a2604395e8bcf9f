"""`unified-vae export` on a run: what it writes, that other programs open it, and what it says to mistakes."""

import json
import re
import shutil

import pytest
import torch

from tests.export.export_helpers import exported, model_of, trained
from tests.helpers.runs import Recorder
from unified_vae.cli.app import main
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.errors import CheckpointError, ConfigError, EnvironmentProblem
from unified_vae.data import prepare
from unified_vae.evaluation import Group
from unified_vae.evaluation.evaluate import evaluate
from unified_vae.export import export
from unified_vae.inference.image_set import open_images
from unified_vae.inference.load import load_model, trained_model
from unified_vae.models.pretrained import load_pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def improved(tmp_path_factory):
    """A run whose best weights are not those of its start, which have no average."""
    return trained(tmp_path_factory.mktemp("improved"), {"model": {"pca_init": False}})


def test_safetensors_are_the_runs_model_with_its_density(run, tmp_path):
    done, seen = exported(run, "safetensors", output=tmp_path / "out")
    first, again = load_pretrained(run / "model"), load_pretrained(done.folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    draws = [model.sample(3, torch.Generator().manual_seed(0)) for model in (first, again)]
    assert again.density.kind == "gaussian" and torch.equal(*draws)
    assert not any("density" in text for text in seen.notices)


def test_raw_weights_are_exported_without_a_density(improved, tmp_path):
    done, seen = exported(improved, "safetensors", output=tmp_path / "out", weights="raw")
    raw, again = model_of(improved, "raw"), load_pretrained(done.folder)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in raw.state_dict().items())
    assert any(
        not torch.equal(value, raw.state_dict()[name]) for name, value in model_of(improved).state_dict().items()
    )
    assert again.density.kind == "normal" and any("density" in text for text in seen.notices)


def test_exported_raw_weights_stay_raw_wherever_they_go(run, tmp_path):
    """In the figures of the folder, in what is exported of it, and beside the run's own model of averaged weights."""
    first, _ = exported(run, "safetensors", output=tmp_path / "raw", weights="raw", images=0)
    loaded = load_model(first.folder, require_data=False)
    assert loaded.weights == "raw" and "raw weights" in loaded.name
    images = str(run.parent / "images.npy")
    options = {"samples": 4, "max_images": 8, "device": "cpu", "skip": set(Group) - {Group.LATENTS}}
    evaluation = evaluate([first.folder], data=images, **options, observer=Recorder())
    assert list(evaluation.results) == ["raw"] and "raw weights alone" in evaluation.notes[0]
    for weights in ("ema", "both"):
        with pytest.raises(ConfigError, match="raw weights alone"):
            evaluate([first.folder], data=images, weights=weights, **options, observer=Recorder())
    again, _ = exported(first.folder, "safetensors", output=tmp_path / "again", images=0)
    for folder in (first.folder, again.folder):
        assert json.loads((folder / "config.json").read_text())["run"]["weights"] == "raw"
        assert json.loads((folder / "export.json").read_text())["weights"] == "raw"
    exported(run, "safetensors", output=first.folder, weights="raw", images=0)  # over what evaluate wrote


def test_the_folder_of_the_same_weights_is_recognized(improved, tmp_path):
    """Not by its step, which raw and averaged weights share."""
    averaged, raw = (load_model(improved, weights=weights) for weights in ("ema", "raw"))
    assert trained_model(averaged).folder == improved / "model" and trained_model(raw) is None
    copied = shutil.copytree(improved / "model", tmp_path / "copy")
    assert trained_model(load_model(copied, require_data=False)).folder == copied
    shutil.copytree(improved, tmp_path / "run")
    (tmp_path / "run" / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        trained_model(load_model(tmp_path / "run"))
    done, seen = exported(tmp_path / "run", "safetensors", output=tmp_path / "out", images=0)
    assert load_pretrained(done.folder) and any("is damaged" in text for text in seen.notices)


def test_the_images_of_a_run_are_packed_once(run, monkeypatch):
    """Of a run whose channels were found in the images."""
    loaded = load_model(run)
    assert loaded.record.requested.model.channels == "auto"
    monkeypatch.setattr(prepare, "pack_source", lambda *_, **__: pytest.fail("the images are packed again"))
    for source in (None, f"{run.parent}/../{run.parent.name}/images.npy"):
        assert open_images(loaded, source, Recorder()).channels == 3
    raw = load_model(run, weights="raw")  # without statistics, which are measured
    assert export._measure_stats(raw, None, None, Recorder()).images > 0


def test_the_verdict_is_in_the_export_and_in_the_runs_model(run, tmp_path):
    done, _ = exported(run, "safetensors", output=tmp_path / "out", images=2)
    for file in (done.folder / "config.json", done.folder / "export.json", run / "model" / "config.json"):
        entry = json.loads(file.read_text())["half_precision"]
        assert entry["verdict"] == "; ".join(done.verdicts) and entry["images"] == 2
    assert load_pretrained(run / "model")


def test_the_card_gets_the_verdict_once_and_keeps_user_text(run, tmp_path):
    exported(run, "safetensors", output=tmp_path / "out", images=2)
    card = run / "model" / "README.md"
    card.write_text("---\nlicense: mit\n" + card.read_text() + "\n## Thanks\n\nTo all.\n")
    before = card.read_text()
    again, _ = exported(run, "safetensors", output=tmp_path / "out", images=1)
    assert card.read_text().count("## Half precision") == 1
    assert f"{'; '.join(again.verdicts)}." in card.read_text() and card.read_text().endswith("## Thanks\n\nTo all.\n")
    without = [re.sub(r"## Half precision\n\n.*\n\n", "", text) for text in (before, card.read_text())]
    assert without[0] == without[1] and "license: mit" in without[0]


def test_a_model_folder_alone_is_exported_without_images(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "model")
    done, _ = exported(tmp_path / "model", "safetensors", output=tmp_path / "out")
    assert "not audited" in done.verdicts[0]
    assert load_pretrained(done.folder).density.kind == "gaussian"
    with pytest.raises(ConfigError, match="name some with --data"):
        exported(tmp_path / "model", "torch", half="fp16")


def test_an_earlier_export_is_replaced_and_nothing_else_is(run, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        exported(run, "safetensors", output=out, images=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt, which no export wrote"):
        exported(run, "safetensors", output=out, images=0)
    assert (out / "notes.txt").read_text() == "mine" and (out / "model.safetensors").is_file()


def test_where_the_comparison_fails_nothing_is_left(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "difference", lambda *_: (0.5, 0.5))
    with pytest.raises(EnvironmentProblem, match="other numbers"):
        exported(run, "safetensors", output=tmp_path / "below" / "out", images=0)
    assert not list((tmp_path / "below").iterdir())


def test_unsafe_half_precision_is_refused_with_the_layer(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    model = load_pretrained(tmp_path / "run" / "model")
    with torch.no_grad():
        model.decoder.head.weight *= 1e7
    write_tensors(tmp_path / "run" / "model" / "model.safetensors", model.state_dict())
    with pytest.raises(ConfigError, match=r"fp16: overflows at decoder\.head: use (bf16|fp32)"):
        exported(tmp_path / "run" / "model", "torch", half="fp16", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_sentence(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "model.pt").write_bytes(b"\x80\x04N.")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    (tmp_path / "blocked").touch()
    cases = [
        ([run, "--to", "onix"], 2, "onix"),
        ([tmp_path / "none", "--to", "torch"], 2, "is not there"),
        ([tmp_path / "model.pt", "--to", "torch"], 2, "pickle"),
        ([tmp_path / "empty", "--to", "torch"], 2, "is no run"),
        ([tmp_path / "started", "--to", "torch"], 3, "no checkpoint yet"),
        ([run, "--to", "torch", "--output", tmp_path / "full"], 2, "not overwritten"),
        ([run, "--to", "torch", "--output", tmp_path / "blocked"], 2, "not overwritten"),
        ([run, "--to", "torch", "--output", tmp_path / "blocked" / "out"], 3, "cannot be written"),
        ([run, "--to", "torch", "--checkpoint", "5"], 2, "best, last and the steps"),
        ([run / "model", "--to", "torch", "--weights", "raw"], 2, "averaged weights alone"),
        ([run, "--to", "safetensors", "--half", "fp16"], 2, "keeps float32"),
        ([run, "--to", "onnx", "--half", "bf16"], 2, "Use fp16"),
    ]
    for words, code, part in cases:
        given = main("unified-vae", ["export", *map(str, words)])
        error = capsys.readouterr().err
        assert (given, error.count("\n")) == (code, 1), (words, error)
        assert part in error, (words, error)
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="uv sync --extra onnx"):
        exported(run, "onnx")


def test_the_command_says_what_is_where(run, capsys):
    code = main("unified-vae", ["export", str(run), "--to", "safetensors", "--images", "4"])
    said = capsys.readouterr().out
    assert code == 0 and "model.safetensors" in said and "exports/safetensors" in said and "fp16: " in said
    assert (run / "exports" / "safetensors" / "export.json").is_file()
