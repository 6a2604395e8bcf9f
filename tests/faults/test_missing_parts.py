"""What a run can do without is left out with a line; what it cannot do without is told before its first step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.fault_rows import report
from tests.helpers.runs import Recorder, outcome, request, server, train, write_images
from unified_vae.core.errors import UserError
from unified_vae.losses.perceptual import ARCHITECTURES, OFFLINE_VARIABLE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server")
NOWHERE = "http://127.0.0.1:9"  # a proxy that refuses every connection: as good as no network
IMAGE_SIZE = 32
VGG_FILE = ARCHITECTURES["vgg"].file
SHORT = {"training": {"max_steps": 2, "batch_size": 4}}
PERCEPTUAL = {"model": {"image_size": IMAGE_SIZE}, **SHORT}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npy", count=20, size=IMAGE_SIZE)


@pytest.fixture(scope="module")
def covered():
    """What was gone through, for the table."""
    done: list[str] = []
    yield done
    report(
        fault="VGG-16 weights of perceptual and lpips: absent, damaged, elsewhere",
        target="exit code 3 before the first step",
        result=f"{len(done)} of 6",
    )


def _run(run_request, blocked: list[str], home: str, queue) -> None:
    """A run where some modules cannot be imported, with this TORCH_HOME and without a network."""
    import torch

    torch.set_num_threads(1)
    torch.hub._hub_dir = None
    os.environ.update(TORCH_HOME=home, http_proxy=NOWHERE, https_proxy=NOWHERE)
    os.environ.pop(OFFLINE_VARIABLE, None)
    for module in blocked:
        sys.modules[module] = None  # importing it now raises ImportError
    seen = Recorder()
    begun = time.monotonic()
    try:
        code, words = train(run_request, [seen]).exit_code, ""
    except UserError as error:
        code, words = error.exit_code, str(error)
    queue.put((code, words, seen.notices, len(seen.started), time.monotonic() - begun))


def run_to_end(run_request, home: Path, blocked: tuple[str, ...] = ()) -> tuple[int, str, list[str], int, float]:
    """Exit code, the error's sentence, notices, times that training started, seconds."""
    queue = server().Queue()
    process = server().Process(target=_run, args=(run_request, list(blocked), str(home), queue))
    process.start()
    answer = queue.get(timeout=300)
    process.join(30)
    return answer


@pytest.mark.figure
def test_without_tensorboard_the_run_is_the_same(source, tmp_path) -> None:
    assert run_to_end(request(tmp_path / "with", source, SHORT), tmp_path)[0] == 0
    blocked = ("tensorboard", "torch.utils.tensorboard")
    code, words, notices, _, _ = run_to_end(request(tmp_path / "without", source, SHORT), tmp_path, blocked)
    assert (code, words) == (0, "")
    assert [notice for notice in notices if "TensorBoard is not available" in notice and "metrics.jsonl" in notice]
    assert outcome(tmp_path / "without") == outcome(tmp_path / "with")
    assert not (tmp_path / "without" / "tensorboard").exists()
    report(fault="TensorBoard is missing", target="a line, and the same run", result="a line; the same bits")


def _damaged(home: Path) -> None:
    path = home / "hub" / "checkpoints" / VGG_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1000))


@pytest.mark.figure
@pytest.mark.parametrize("term", ["perceptual", "lpips"])
@pytest.mark.parametrize("state", ["empty", "damaged", "wrong path"])
def test_strict_weights_end_the_run_before_its_first_step(source, tmp_path, covered, term, state) -> None:
    settings: dict[str, object] = {"weight": 0.1, "missing": "strict"}
    if state == "damaged":
        _damaged(tmp_path / "home")
    if state == "wrong path":
        settings["weights_path"] = str(tmp_path / "vgg.pth")
    run_request = request(tmp_path / "run", source, {**PERCEPTUAL, "loss": {term: settings}})
    code, words, _, started, _ = run_to_end(run_request, tmp_path / "home")
    assert (code, started) == (3, 0), words
    assert f"loss.{term}" in words and VGG_FILE in words and "weights_path" in words
    if state != "wrong path":
        assert f"curl --create-dirs -o {tmp_path}/home/hub/checkpoints/{VGG_FILE} https://" in words
        assert "sha256 begins 397923af" in words
    if state == "damaged":
        assert "is damaged (its sha256 begins" in words and "delete it" in words
    covered.append(f"{term} {state}")


def test_a_replacement_is_reported_and_recorded(source, tmp_path) -> None:
    """Never in silence: a line with the reason at every start, and the record of the run says so."""
    run_request = request(tmp_path / "run", source, {**PERCEPTUAL, "loss": {"lpips": {"weight": 0.1}}})
    for _ in range(2):
        code, words, notices, _, _ = run_to_end(run_request, tmp_path / "home")
        assert (code, words) == (0, "")
        if notices:
            assert any("loss.lpips is replaced by loss.haarpsi" in notice for notice in notices)
            assert any("loss.lpips.missing=strict" in notice for notice in notices)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["substitutions"][0][:2] == ["lpips", "haarpsi"]
    assert record["config"]["loss"]["lpips"]["weight"] == 0 and record["config"]["loss"]["haarpsi"]["weight"] == 0.1


@pytest.mark.parametrize(
    ("name", "blocked", "words"),
    [
        ("torchvision:CIFAR10", "torchvision", "needs torchvision"),
        ("hf:owner/name", "datasets", "uv sync --extra hf"),
        ("torchvision:CIFAR10", "", "could not be downloaded"),
    ],
)
def test_libraries_and_networks_that_are_missing(source, tmp_path, name, blocked, words) -> None:
    run_request = request(
        tmp_path / "run", source, {**SHORT, "data": {"source": name, "cache_dir": str(tmp_path / "cache")}}
    )
    code, sentence, _, started, _ = run_to_end(run_request, tmp_path / "home", (blocked,) if blocked else ())
    assert (code, started) == (3, 0) and words in sentence, sentence


@pytest.mark.long
def test_the_first_command_needs_neither_gpu_nor_network(tmp_path) -> None:
    """`--mode quick_test` as a user types it first: nothing fetched, nothing given, all found in empty folders."""
    root = Path(__file__).parents[2]
    keep = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "LD_LIBRARY_PATH")}
    environment = {**keep, "HOME": str(tmp_path), "http_proxy": NOWHERE, "https_proxy": NOWHERE}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "UNIFIED_VAE_CACHE": str(tmp_path / "cache")}
    begun = time.monotonic()
    command = [sys.executable, str(root / "train.py"), "--mode", "quick_test"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "quick_test" / "model" / "model.safetensors").is_file()
    seconds = time.monotonic() - begun
    report(fault="quick_test without GPU and network", target="completes in minutes", result=f"{seconds:.0f} s")
