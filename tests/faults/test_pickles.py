"""Pickles given as a run, as weights or as a model: refused, and what they would run is not run."""

import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import MANIFEST, Checkpoint, seal
from unified_vae.core.errors import EnvironmentProblem, UserError
from unified_vae.inference.load import load_model
from unified_vae.losses import perceptual
from unified_vae.losses.perceptual import ARCHITECTURES, cached_file, load_weights, lpips_heads
from unified_vae.models.pretrained import load_pretrained

OPENERS = re.compile(r"\b(pickle\.loads?|Unpickler|allow_pickle=True|weights_only=False|dcp\.load)\b")
SOURCES = Path(__file__).parents[2] / "src"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def saved_by_torch(payload, **how):
    stream = io.BytesIO()
    torch.save({"state_dict": payload, "model": {"weight": torch.ones(2)}}, stream, **how)
    return stream.getvalue()


KINDS = {
    "torch.save": saved_by_torch,
    "torch.save of old": lambda payload: saved_by_torch(payload, _use_new_zipfile_serialization=False),
    "pickle": lambda payload: pickle.dumps(payload, protocol=4),
    "pickle in text": lambda payload: pickle.dumps(payload, protocol=0),
    "random state": lambda payload: pickle.dumps({"random": (3, (1, 2), None), "numpy": payload}),
}


@pytest.fixture(params=[False, True], ids=["", "no weights_only by force"])
def marker(tmp_path, monkeypatch, request):
    """The file that the payload would make. Afterwards it must not be there."""
    if request.param:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "the payload was run"


@pytest.fixture(params=KINDS)
def evil(request, marker):
    """The content of such a file."""
    return KINDS[request.param](Payload(marker))


def test_the_payload_works_where_it_is_opened_carelessly(tmp_path):
    """So the tests below can fail."""
    for number, make in enumerate(KINDS.values()):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(make(Payload(tmp_path / f"marker-{number}")))
        try:
            torch.load(path, weights_only=False)
        except (pickle.UnpicklingError, RuntimeError):  # a plain pickle is not torch's: its own module opens it
            pickle.loads(path.read_bytes())
        assert (tmp_path / f"marker-{number}").exists()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npy", count=12)


def refused(run_dir, source):
    with pytest.raises(UserError) as problem:
        train(request(run_dir, source, {"training": {"max_steps": 1}}), [Recorder()])
    assert problem.value.exit_code in (2, 3)
    return str(problem.value)


@pytest.mark.parametrize("name", ["last.ckpt", "epoch=3.ckpt", "model.pt", "pytorch_model.bin", "rng_state.pkl"])
@pytest.mark.parametrize("place", ["", "checkpoints"])
def test_checkpoints_of_other_programs_as_a_run(tmp_path, source, evil, name, place):
    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    (folder / name).write_bytes(evil)
    said = refused(tmp_path / "run", source)
    assert str(folder / name) in said and "--run-dir" in said
    assert (folder / name).read_bytes() == evil and not list(tmp_path.rglob("metrics.jsonl"))


def test_a_file_as_a_run(tmp_path, source, evil):
    (tmp_path / "last.ckpt").write_bytes(evil)
    assert "is a file, and a run is a folder" in refused(tmp_path / "last.ckpt", source)
    with pytest.raises(UserError):
        load_model(tmp_path / "last.ckpt")


def test_a_folder_of_torch_distributed_checkpoint(tmp_path, source, marker):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metadata").write_bytes(pickle.dumps(Payload(marker)))
    (tmp_path / "run" / "__0_0.distcp").write_bytes(pickle.dumps(Payload(marker)))
    assert ".metadata is a checkpoint of another program" in refused(tmp_path / "run", source)
    with pytest.raises(UserError):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", MANIFEST])
def test_in_the_files_of_a_checkpoint_whose_manifest_was_forged(tmp_path, evil, name):
    root = tmp_path / "checkpoints"
    root.mkdir()
    groups = {"model": {"weight": torch.ones(3)}, "optimizer": {"weight/exp_avg": torch.ones(3)}}
    folder = checkpoint_format.save(root, Checkpoint(3, groups, {"train": {}}))
    (folder / "extra.pt").write_bytes(evil)  # not in the manifest: not looked at
    assert retention.newest_good(root, print).step == 3
    (folder / name).write_bytes(evil)
    if name != MANIFEST:
        forge(folder, name)
    said = []
    with pytest.raises(UserError, match="--no-resume"):
        retention.newest_good(root, said.append)
    assert name in said[0]


def forge(folder, name):
    """Describe a changed file as if it had been saved so."""
    import hashlib

    content = json.loads((folder / MANIFEST).read_text())
    data = (folder / name).read_bytes()
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del content["seal"]
    (folder / MANIFEST).write_text(json.dumps({**content, "seal": seal(content)}, indent=1))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=lambda each: each.title)
def test_as_pretrained_weights(tmp_path, monkeypatch, evil, architecture):
    (tmp_path / "weights.pth").write_bytes(evil)
    with pytest.raises(EnvironmentProblem, match=r"weights\.pth"):
        load_weights(architecture, str(tmp_path / "weights.pth"), "loss.perceptual.weights_path", print)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    cached = cached_file(architecture.url)
    assert str(cached).startswith(str(tmp_path)), "it would write into the user's own cache"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(evil)
    monkeypatch.setattr(perceptual, "_digest_in", lambda name: "")  # as if the checksum were of no use
    with pytest.raises(EnvironmentProblem, match=re.escape(architecture.file)):
        load_weights(architecture, None, "loss.perceptual.weights_path", print)


def test_as_the_linear_weights_of_lpips(tmp_path, monkeypatch, evil):
    folder = tmp_path / "torchmetrics" / "functional" / "image" / "lpips_models"
    folder.mkdir(parents=True)
    (folder / "vgg.pth").write_bytes(evil)
    (tmp_path / "torchmetrics" / "__init__.py").write_text("")
    monkeypatch.setattr(
        perceptual.importlib.util,
        "find_spec",
        lambda name: type("Spec", (), {"origin": f"{tmp_path}/{name}/__init__.py"}),
    )
    with pytest.raises(EnvironmentProblem, match="reinstall"):
        lpips_heads("vgg")


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    torch.set_num_threads(1)
    run_dir = tmp_path_factory.mktemp("exported") / "run"
    train(request(run_dir, source, {"training": {"max_steps": 1}, "density": {"fit": "gaussian"}}), [Recorder()])
    return run_dir / "model"


@pytest.mark.parametrize("name", ["model.safetensors", "density.safetensors", "config.json"])
def test_as_a_model(tmp_path, exported, evil, name):
    shutil.copytree(exported, tmp_path / "model")
    load_pretrained(tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(evil)
    with pytest.raises(UserError, match="damaged"):
        load_pretrained(tmp_path / "model")


def test_as_a_model_of_another_kind(tmp_path, evil):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(evil)
    (tmp_path / "model.pt").write_bytes(evil)
    for path in ("model", "model.pt"):
        with pytest.raises(UserError, match="is not a model folder"):
            load_pretrained(tmp_path / path)


def test_weights_that_unpack_to_much_are_not_unpacked(tmp_path):
    """64 MB of zeros in 64 kB: torch's own files are not compressed, and only such are mapped."""
    plain, packed = tmp_path / "plain.pth", tmp_path / "weights.pth"
    torch.save({"features.0.weight": torch.zeros(2**24)}, plain)
    with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in archive.infolist():
            bomb.writestr(entry.filename, archive.read(entry.filename))
    assert packed.stat().st_size < plain.stat().st_size / 500
    with pytest.raises(EnvironmentProblem, match=r"weights\.pth is damaged or no file of weights"):
        load_weights(ARCHITECTURES["vgg"], str(packed), "loss.perceptual.weights_path", print)


def test_no_file_is_opened_as_a_pickle_anywhere():
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(pickle\.loads?|Unpickler|allow_pickle=True|weights_only=False|dcp\.load)\b", text), (
            path
        )
        for call in re.findall(r"(?<!safetensors\.)\btorch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, path
