"""Write fixtures/VERSION anew: what a run of the working tree leaves, for later versions to load and continue.

    python -m tests.golden.make_fixtures VERSION

That is a run stopped in mid-epoch, the model folder and record of a finished one, and the settings and presets as they
are written at the time (below, in the words of version 0.1.0). Fixtures of earlier versions stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.golden.compare import HERE, TREE
from tests.golden.drive import Driver, write_images

SETTINGS = {
    "model": {
        "family": "residual",
        "image_size": 16,
        "latents": 4,
        "base_channels": 4,
        "max_multiplier": 2,
        "blocks": 0,
        "prepare_blocks": 1,
        "detail_blocks": 1,
        "neck_channels": 4,
        "pca_start": True,
    },
    "loss": {"l1": {"weight": 0.1}, "kl": {"weight": 2.0, "schedule": {"kind": "linear", "warmup": 0.3}}},
    "training": {
        "epochs": 4,
        "batch_size": 8,
        "accumulate": 2,
        "clip_norm": 0.5,
        "ema_decay": 0.95,
        "log_every_steps": 3,
        "lr_schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
        "recovery": {"skips": 4, "spike": 8.0, "rollbacks": 2},
        "checkpoint": {"every_steps": 7, "keep_last": 9},
        "samples": {"every_epochs": 2, "count": 4},
    },
    "data": {
        "validation_fraction": 0.3,
        "accept_change": False,
        "resident": "auto",
        "augment": {"horizontal_flip": True, "colour": {"contrast": 0.1}},
    },
    "density": {"fit": "mixture", "max_components": 2},
}
PRESETS = {
    "loss_presets": {
        "stored": {
            "_extends": "mse_l1",
            "kl": {
                "weight": 5.0,
                "convention": "nats",
                "constraint": {"kind": "capacity", "nats": 9.0, "start_nats": 1.0, "warmup": 0.5},
            },
        }
    },
    "training_presets": {
        "stored": {
            "epochs": 1,
            "batch_size": 8,
            "accumulate": 2,
            "clip_norm": 0.5,
            "lr_schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
            "recovery": {"skips": 4, "spike": 8.0, "rollbacks": 2},
            "samples": {"every_epochs": 1, "count": 4},
        }
    },
    "model_presets": {
        "stored_residual": {
            "family": "residual",
            "image_size": 16,
            "latents": 4,
            "base_channels": 8,
            "max_multiplier": 2,
            "pca_start": True,
            "blocks": 1,
            "prepare_blocks": 1,
            "detail_blocks": 1,
            "detail_size": "picture",
            "neck_channels": 4,
        },
        "stored_spatial": {
            "family": "spatial",
            "image_size": 16,
            "downsampling": 4,
            "latent_channels": 2,
            "base_channels": 8,
            "multipliers": [1, 1, 2],
            "layers_per_block": 1,
        },
    },
    "augment_presets": {"stored": {"_extends": "flip", "colour": {"brightness": 0.1, "contrast": 0.2}}},
    "modes": {
        f"stored_{family}": {
            "_description": "a mode of a file of version 0.1.0",
            "loss": "stored",
            "training": "stored",
            "model": f"stored_{family}",
            "dataset": "tiny",
            "augment": "stored",
            "set": {"density.fit": "gaussian", "data.accept_change": False, "data.resident": "auto"},
        }
        for family in ("residual", "spatial")
    },
}


KEPT_OF_THE_RUN = ("config.json", "metrics.jsonl", "preflight.json", "images-*.tsv")


def main() -> int:
    """Train in a folder of temporary files, then put what is kept into its place."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    target = HERE / "fixtures" / sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="unified-vae-golden-") as name:
        folder = Path(name)
        os.environ.update(UNIFIED_VAE_OFFLINE="1", UNIFIED_VAE_CACHE=str(folder / "cache"))
        write_images(folder / "images.npy", 48, 16, 3)
        for file, content in (("settings.json", SETTINGS), ("presets.json", PRESETS)):
            (folder / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

        # A run names the files that its settings come from, relative to the current folder where they lie in it. So the
        # code runs from a copy there, and no path of this machine gets into the fixture.
        for part in ("src", "config"):
            shutil.copytree(TREE / part, folder / part)
        for script in ("train.py", "train_unified.py", "pyproject.toml"):
            shutil.copy2(TREE / script, folder)
        sys.path.insert(0, str(folder / "src"))  # the commands are forks of this process
        driver = Driver(folder, folder, folder, set())
        driver.train({}, "--config", "settings.json", run="finished")
        driver.train({}, "--config", "settings.json", killed_after=14)

        # of the checkpoints the newest is enough, and it has to be one of mid-epoch
        newest = max((folder / "run" / "checkpoints").glob("step-*"))
        assert newest.name == "step-000000014", f"stopped at {newest.name}, which is no save of mid-epoch"
        shutil.rmtree(target, ignore_errors=True)
        for pattern in KEPT_OF_THE_RUN:
            for path in (folder / "run").glob(pattern):
                (target / "run").mkdir(parents=True, exist_ok=True)
                if path.is_file():
                    shutil.copy2(path, target / "run")
        shutil.copytree(newest, target / "run" / "checkpoints" / newest.name)
        shutil.copytree(folder / "finished" / "model", target / "model")
        shutil.copy2(folder / "finished" / "config.json", target / "record.json")
        for file in ("images.npy", "settings.json", "presets.json"):
            shutil.copy2(folder / file, target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target}: {size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
