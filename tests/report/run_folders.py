"""Folders of runs as they lie on the disk, made in milliseconds: no run, no torch."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

CONFIG = {
    "seed": 0,
    "loss": {"mse": {"weight": 1.0}, "kl": {"weight": 2.0}},
    "training": {"epochs": 4, "batch_size": 16, "max_steps": None},
    "model": {"family": "conv", "latents": 32, "image_size": 16},
    "data": {"source": "photos"},
}
MODEL = {"run": {"step": 30, "trained_steps": 40}, "latent_stats": {"shift": 0.25, "scale": 1.5, "images": 160}}
ORIGINS = {"loss.mse.weight": "loss preset mse_l1 (book.json)", "seed": "default", "training.epochs": "--epochs"}


def validation(step: int, psnr: float) -> dict[str, object]:
    """A row of metrics.jsonl."""
    return {
        "split": "validation",
        "step": step,
        "epoch": step / 10,
        "psnr": psnr,
        "psnr.mean_image": 11.5,
        "psnr.above_pca": psnr - 20,
        "sharpness": 0.4375,
        "rate.nats": 17.0625 + step,
        "active_units": 13.0,
        "posterior.gap": 1.8125,
        "bits_per_dim": 5.40625,
        "loss.total": -1.5,
        "loss.nll": -400.0,
    }


def training(step: int) -> dict[str, object]:
    """Another."""
    row = {"split": "train", "step": step, "epoch": step / 10, "loss.total": 9.0 / step, "loss.mse": 0.1 / step}
    return {**row, "rate.nats": 20.0, "lr": 1e-3 / step, "beta": 2.0, "sigma": 0.07}


def bare_run(folder: Path, **changes: object) -> Path:
    """A config and one row of metrics."""
    folder.mkdir(parents=True)
    record = {"config": CONFIG, "origins": ORIGINS, "names": {"mode": "quick_test"}, **changes}
    (folder / "config.json").write_text(json.dumps(record))
    write_rows(folder / "metrics.jsonl", [training(10)])
    return folder


def whole_run(folder: Path, psnr: float = 21.28125, **changes: object) -> Path:
    """A finished run with everything that one leaves."""
    more = {
        "steps_per_epoch": 10,
        "data": {"fingerprint": "f", "description": "folder photos: 160 to train"},
        "environment": {"torch": "2.15.0", "gpu": "a GPU"},
        "preflight": {"latents": 32, "psnr_pca": 20.0, "predicted": {"rate": 40.0, "psnr": 20.5}},
        "substitutions": [["perceptual", "haarpsi", "no weights"]],
        **changes,
    }
    bare_run(folder, **more)
    steps = range(10, 50, 10)
    rows = [row for step in steps for row in (training(step), validation(step, psnr - 0.5 * abs(step - 30) / 10))]
    write_rows(folder / "metrics.jsonl", rows)
    write_rows(folder / "timing.jsonl", [{"step": step, "images_per_second": 80.0} for step in steps])
    write_rows(folder / "skipped.jsonl", [{"step": 7, "not_finite": ["loss.mse"], "images": ["odd.png"]}])
    (folder / "quarantine.txt").write_text("broken.png\tit ends too early\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(MODEL))
    for name in ("epoch-0003-reconstructions", "epoch-0004-reconstructions", "epoch-0004-samples", "final-samples"):
        draw(folder / "samples" / f"{name}.png")
    return folder


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(path: Path, size: tuple[int, int] = (64, 32)) -> None:
    """A picture of as many bytes as noise takes."""
    path.parent.mkdir(exist_ok=True)
    Image.effect_noise(size, 90).convert("RGB").save(path, compress_level=1)


def kept_diagnosis(cause: str, step: int) -> str:
    """As `diagnose` and the end of a run write it."""
    evidence = [{"cause": cause, "applies": True, "figures": "13 of 32 units active"}]
    return json.dumps(
        {"step": step, "cause": cause, "advice": "more of it", "command": "uv run it", "evidence": evidence}
    )
