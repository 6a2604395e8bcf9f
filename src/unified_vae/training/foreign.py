"""Checkpoints of other programs, which are pickles: opening one runs what it says. They are named and never opened."""

from __future__ import annotations

from pathlib import Path

from unified_vae.core.errors import CheckpointError

ENDINGS = (".ckpt", ".pt", ".pth", ".pkl", ".pickle", ".bin", ".distcp", ".joblib")
METADATA = ".metadata"  # of a folder that torch.distributed.checkpoint wrote


def refuse_foreign(run_dir: Path, checkpoints: Path) -> None:
    """Raise CheckpointError where somebody else's checkpoints lie in the place of a run's, and none of ours.

    To begin afresh there would leave the impression that they had been continued.
    """
    if run_dir.is_file():
        raise CheckpointError(f"{run_dir} is a file, and a run is a folder: {_WAY_OUT}")
    found = [path for place in (checkpoints, run_dir) if place.is_dir() for path in place.iterdir() if _foreign(path)]
    if found:
        raise CheckpointError(
            f"{min(found)} is a checkpoint of another program, which is not opened because that could run code hidden "
            f"in it: {_WAY_OUT}"
        )


_WAY_OUT = "name another folder with --run-dir. Only runs of this program can be continued."


def _foreign(path: Path) -> bool:
    return path.name == METADATA or path.suffix.lower() in ENDINGS
