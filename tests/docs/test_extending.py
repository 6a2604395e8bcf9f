"""docs/extending.md is followed literally: its code is put where it says, and what it promises holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import Recorder, outcome, request, train, write_images
from unified_vae.inference.load import load_model
from unified_vae.pipeline.fit import fit

ROOT = Path(__file__).parents[2]


def code_of(section: str) -> list[str]:
    """The Python blocks of a section, in order."""
    text = (ROOT / "docs" / "extending.md").read_text("utf-8")
    body = text.partition(f"## {section}\n")[2].partition("\n## ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"^ *```python\n(.*?)^ *```", body, re.S | re.M)]


def test_a_loss_term_is_a_class_and_a_field(tmp_path: Path) -> None:
    """A copy of the sources with both passes the tests of every term."""
    sources = tmp_path / "src"
    shutil.copytree(ROOT / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
    settings, field, term = code_of("A loss term")
    config = sources / "unified_vae" / "config" / "loss.py"
    text = config.read_text("utf-8").replace("class KLConfig(", f"{settings}\n\nclass KLConfig(")
    config.write_text(text.replace("    kl: KLConfig", f"    {field}    kl: KLConfig"), "utf-8")
    pixel = sources / "unified_vae" / "losses" / "pixel.py"
    text = pixel.read_text("utf-8").replace("import CharbonnierConfig", "import CharbonnierConfig, HuberConfig")
    pixel.write_text(f"{text.replace('import Tensor', 'import Tensor, nn')}\n\n{term}", "utf-8")

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "tests/losses/test_terms.py",
        "-k",
        "huber",
    ]
    environment = {**os.environ, "PYTHONPATH": str(sources)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 13


def defined_in(section: str) -> dict[str, Any]:
    """What the Python of a section defines, run as it stands."""
    names: dict[str, Any] = {}
    for block in code_of(section):
        exec(block, names)
    return names


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images.npy")


def test_a_second_network_is_trained_saved_and_resumed(source: Path, tmp_path: Path) -> None:
    build = defined_in("A second network trained beside the VAE")["build_probed_step"]
    whole, cut = (request(tmp_path / name, source, {"training": {"epochs": 2}}) for name in ("whole", "cut"))
    recorder = Recorder()
    train(whole, [recorder], build_step=build)
    losses = [event.values["loss.probe"] for event in recorder.logged]
    assert losses[-1] < losses[0]

    class Stop(Recorder):
        def step_done(self, event):
            if event.step == 4:
                self.control.stop("enough")

    stop = Stop()
    train(cut, [stop], build_step=build, prepare=lambda job: setattr(stop, "control", job.control))
    train(cut, build_step=build)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    assert list((tmp_path / "cut" / "checkpoints").glob("step-*/probe_optimizer.safetensors"))


def test_a_run_starts_from_other_weights(source: Path, tmp_path: Path) -> None:
    names = defined_in("Start from other weights")
    train(request(tmp_path / "first", source, {"training": {"epochs": 1}}))
    decoders = []

    def remember(job):
        decoders.append({name: value.clone() for name, value in job.train_step.model.decoder.state_dict().items()})

    initializers = [*names["INITIALIZERS"], names["decoder_from"](tmp_path / "first"), remember]
    second = request(tmp_path / "second", source, {"training": {"epochs": 1}, "seed": 1})
    train(second, initializers=initializers)
    trained = load_model(tmp_path / "first", require_data=False).model.decoder.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in decoders[0].items())


def test_work_after_training_and_a_logger(source: Path, tmp_path: Path) -> None:
    finalizer = defined_in("Work after training")["count_parameters"]
    lines: list[tuple[int, dict[str, float]]] = []
    logger = defined_in("A metrics logger")["PrintLogger"](lambda step, values: lines.append((step, values)))
    recorder = Recorder()
    fit(request(tmp_path / "run", source, {"training": {"epochs": 1}}), [recorder, logger], finalizers=[finalizer])
    count = int((tmp_path / "run" / "parameters.txt").read_text())
    assert count > 100 and any(f"{count:,} parameters" in line for line in recorder.finished.advice)
    assert any("loss.total" in values for _, values in lines) and any("val/psnr" in values for _, values in lines)


MLP_IMPORT = "from unified_vae.models.mlp import MLPDecoder, MLPEncoder\n"
MEMBERS = """
import json, sys
from pathlib import Path
from tests.helpers.runs import Recorder, train
from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.models.mlp import MLPDecoder
from unified_vae.optim.lr import lr_factor
from unified_vae.pipeline.plan import RunRequest

home = Path(sys.argv[1])
model = {"family": "mlp", "image_size": 16, "latents": 4, "hidden": 16}
optimizer, schedule = {"kind": "nadam", "lr": 1e-3}, {"kind": "linear", "warmup": 0.1, "min_lr_ratio": 0.5}
training = {"epochs": 2, "batch_size": 8, "optimizer": optimizer, "lr_schedule": schedule}
source = {"source": str(home / "images.npy"), "cache_dir": str(home / "cache")}
config = {"model": model, "training": training, "data": source, "density": {"fit": "gaussian"}, "device": "cpu"}
run = ComposedRun(RunConfig.model_validate_json(json.dumps(config)), {}, {})
jobs = []
finished = train(RunRequest(run, home / "run", resume=True, command=""), [Recorder()], prepare=jobs.append)
assert finished.outcome == "finished"
assert type(jobs[0].train_step.optimizers["main"]).__name__ == "NAdam"
assert isinstance(jobs[0].train_step.model.decoder, MLPDecoder)
assert lr_factor(run.config.training.lr_schedule, 1.0) == 0.5
"""


def test_a_family_an_optimizer_and_a_schedule_train(source: Path, tmp_path: Path) -> None:
    """A copy of the sources with a member more in each of three unions."""
    package = tmp_path / "src" / "unified_vae"
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))

    def edit(name: str, before: str, after: str) -> None:
        text = (package / name).read_text("utf-8")
        assert before in text
        (package / name).write_text(text.replace(before, after, 1), "utf-8")

    def add_member(name: str, union: str, block: str) -> None:
        """Put the class and the longer union in the place of the union."""
        line = next(line for line in (package / name).read_text("utf-8").splitlines() if line.startswith(union))
        edit(name, line, block)

    network, family, build = code_of("A model family")
    (package / "models" / "mlp.py").write_text(network, "utf-8")
    add_member("config/model.py", "ModelConfig = ", family)
    edit("models/build.py", "import ConvConfig,", "import ConvConfig, MLPConfig,")
    edit("models/build.py", "from unified_vae.models.pca", MLP_IMPORT + "from unified_vae.models.pca")
    edit(
        "models/build.py",
        "            case SpatialConfig",
        textwrap.indent(build, " " * 12) + "            case SpatialConfig",
    )
    optimizer, case = code_of("An optimizer")
    add_member("config/optim.py", "OptimizerConfig = ", optimizer)
    edit("optim/build.py", "import SGD,", "import SGD, NAdam,")
    edit("optim/build.py", "import AdamConfig,", "import AdamConfig, NAdamConfig,")
    edit("optim/build.py", "        case SGDConfig", textwrap.indent(case, " " * 8) + "        case SGDConfig")
    schedule, case = code_of("A learning-rate schedule")
    add_member("config/optim.py", "LRScheduleConfig = ", schedule)
    edit("optim/lr.py", "import ConstantLR,", "import ConstantLR, LinearLR,")
    edit("optim/lr.py", "        case CosineLR", textwrap.indent(case, " " * 8) + "        case CosineLR")

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), str(ROOT)])}
    command = [sys.executable, "-c", MEMBERS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
