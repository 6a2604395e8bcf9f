"""Checkpoints of another preset, shape or version: told before training, with what differs and what to do."""

import json
import shutil

import pytest
import torch

from tests.helpers.runs import Recorder, request, train
from unified_vae.config.model import ConvConfig
from unified_vae.core import retention
from unified_vae.core.checkpoint_format import MANIFEST, OtherFormat, folder_name, load_weights, seal
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.run_dir import RunFolder
from unified_vae.models.build import build_model
from unified_vae.pipeline.resume import refuse_impossible

SHORT = {"training": {"epochs": 1}}


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    train(request(run_dir, source, SHORT), [Recorder()])
    return run_dir


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OTHERS = [
    {"model": {"latents": 5}},
    {"model": {"latents": 3, "base_channels": 8}},
    {"model": {"base_channels": 8}},
    {"model": {"image_size": 32}},
    {"model": {"image_size": 8, "latents": 2, "base_channels": 8, "max_multiplier": 2}},
    {"model": {"max_multiplier": 1}},
    {"model": {"pca_init": False}},
    {"model": {"channels": 1}},
    {"seed": 5},
    {"training": {"batch_size": 4}},
    {"training": {"optimizer": {"kind": "sgd"}}},
]


@pytest.mark.parametrize("change", OTHERS, ids=json.dumps)
def test_a_checkpoint_of_other_settings_is_refused_with_a_table(trained, source, change):
    before = bytes_of(trained)
    watcher = Recorder()
    with pytest.raises(ConfigError) as problem:
        train(request(trained, source, {**SHORT, **change}), [watcher])
    assert problem.value.exit_code == 2 and watcher.logged == []
    heading, *rows = problem.value.details
    assert {row.split()[0] for row in rows} == paths_of(change)
    assert all(word in heading for word in ("setting", "checkpoint", "now"))
    assert "--no-resume" in str(problem.value) and "--run-dir" in str(problem.value)
    after = bytes_of(trained)
    assert {path for path in after if after[path] != before.get(path)} == set(), "the run was touched"


def paths_of(change, before=""):
    """Dotted names of the settings that a change names."""
    if not isinstance(change, dict):
        return {before}
    return {path for name, part in change.items() for path in paths_of(part, f"{before}.{name}" if before else name)}


def test_the_nearest_fix_names_the_old_values(trained, source):
    with pytest.raises(ConfigError, match=r"Give the old value: --set model\.latents=4;"):
        train(request(trained, source, {**SHORT, "model": {"latents": 5}}), [Recorder()])


@pytest.mark.parametrize(
    ("then", "now", "fix"),
    [
        ({"mode": "a", "model": "medium"}, {"mode": "b", "model": "small"}, "--mode a: give that"),
        ({"model": "medium", "loss": "x"}, {"model": "small", "loss": "y"}, "begun with --model-preset medium;"),
    ],
)
def test_the_nearest_fix_names_mode_or_preset(trained, source, then, now, fix):
    import dataclasses

    from unified_vae.config.run import RunRecord
    from unified_vae.pipeline.resume import differences

    content = json.loads(RunFolder(trained).config.read_text())
    record = dataclasses.replace(RunRecord.from_json(content, trained), names=then)
    other = request(trained, source, {"model": {"latents": 5}}).run.config
    with pytest.raises(ConfigError) as problem:
        refuse_impossible(differences(record, other), record, now, trained)
    assert fix in str(problem.value)


# --- versions -------------------------------------------------------------------------------------------------


def resealed(folder, **change):
    """Change entries of a manifest as another version would have written them."""
    path = folder / MANIFEST
    content = {**json.loads(path.read_text()), **change}
    del content["seal"]
    path.write_text(json.dumps({**content, "seal": seal(content)}, indent=1))


def test_a_checkpoint_of_a_newer_format_is_not_skipped(trained, source, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    root = tmp_path / "run" / "checkpoints"
    newest = retention.saved_steps(root)[0]
    resealed(root / folder_name(newest), format=7, written_by="unified-vae 9.1.0")
    before = bytes_of(tmp_path / "run")
    with pytest.raises(OtherFormat, match=r"unified-vae 9\.1\.0 in format 7.*reads format 1.*--no-resume") as problem:
        train(request(tmp_path / "run", source, SHORT), [Recorder()])
    assert problem.value.exit_code == 3 and bytes_of(tmp_path / "run") == before


def test_a_record_with_removed_settings_names_its_version(trained):
    content = json.loads(RunFolder(trained).config.read_text())
    content["requested"]["model"]["gone"] = 1  # a setting that this version does not know
    content["environment"]["unified-vae"] = "0.0.7"
    from unified_vae.config.run import RunRecord

    with pytest.raises(CheckpointError, match=r"begun by unified-vae 0\.0\.7; this is unified-vae .*--no-resume"):
        RunRecord.from_json(content, trained)


def test_weights_of_an_earlier_version_compute_as_they_did_then():
    """They do not name the gains, which were 1 for the posterior and a half for the detail."""
    torch.manual_seed(0)
    model, again = (build_model(ConvConfig(image_size=16, latents=3, base_channels=4, channels=3)) for _ in range(2))
    named = {"encoder.head.gain", "decoder.residual_scale"}
    load_weights(again, {key: value for key, value in model.state_dict().items() if key not in named}, "model")
    images, noise = torch.rand(2, 3, 16, 16), torch.randn(2, 3)
    assert torch.equal(again(images, noise).reconstruction, model(images, noise).reconstruction)
    with pytest.raises(CheckpointError, match="another model"):
        load_weights(again, {key: value for key, value in model.state_dict().items() if "conv_out" not in key}, "model")
