"""A tiny run to export, and what the tests of its exports share."""

import os
import subprocess
import sys

import numpy as np
import torch

from tests.helpers.runs import Recorder, request, train, write_images
from unified_vae.export.export import export
from unified_vae.inference.load import load_model

CHANGE = {"training": {"epochs": 2, "samples": {"count": 4}}}
BATCHES = (1, 2, 7)


def trained(folder, change=None):
    """A finished run in `folder`."""
    train(request(folder / "run", write_images(folder / "images.npy"), {**CHANGE, **(change or {})}), [])
    return folder / "run"


def exported(run, to, **more):
    """What `export` gives, and what it said."""
    seen = Recorder()
    return export(run, to, **more, observer=seen), seen


def outputs_of_parts(stage, parts, to, batches):
    """What the fresh process of an export would read, without starting one."""
    results = ((part, size, part.outputs(size)) for part in parts for size in batches[part.name])
    return {
        f"{part.name}/{size}/{number}": value.numpy()
        for part, size, values in results
        for number, value in enumerate(values)
    }


def model_of(run, weights="ema"):
    """The best weights of a run."""
    return load_model(run, weights=weights).model


def alone(script, *words):
    """Run a script in a fresh process, which may not load unified_vae; gives what it printed."""
    guard = "\nassert not any(name.startswith('unified_vae') for name in sys.modules)\n"
    command = [sys.executable, "-c", "import sys\n" + script + guard, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def relative_differences(script, folder, model, tmp_path):
    """Largest difference / largest number, for each output of each batch size; and what the script printed."""
    generator = torch.Generator().manual_seed(3)
    given = {f"images{batch}": torch.rand(batch, 3, 16, 16, generator=generator) for batch in BATCHES}
    given |= {f"latents{batch}": torch.randn(batch, 4, generator=generator) for batch in BATCHES}
    np.savez(tmp_path / "numbers.npz", **{name: value.numpy() for name, value in given.items()})
    said = alone(script, folder, tmp_path / "numbers.npz")
    result = np.load(tmp_path / "numbers.npz")
    differences = []
    with torch.no_grad():
        for batch in BATCHES:
            posterior = model.encode(given[f"images{batch}"])
            image = model.decode(given[f"latents{batch}"])
            for name, value in (("mean", posterior.mean), ("logvar", posterior.logvar), ("image", image)):
                assert result[f"{name}{batch}"].shape == value.shape
                differences.append(float(np.abs(result[f"{name}{batch}"] - value.numpy()).max() / value.abs().max()))
    return differences, said
