"""What beta does: rate and distortion for several betas and numbers of latents, beside what linear theory predicts.

CIFAR-10 at 32 px. The plot goes to docs/images/beta-sweep.png; --plot draws it again from the JSON.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runs import NOT_ASKED, Job, images, train_all
from script import earlier, overrides, parser, save, settle, source, start, table
from unified_vae.analysis.preflight import Preflight, run_preflight
from unified_vae.core.errors import ConfigError

NAME = "beta_sweep"
SET, SIZE = "cifar10", 32
BETAS = (0.1, 0.5, 1.0, 2.0, 4.0, 10.0)
LATENTS = (64, 128, 256, 512)
PREDICTED_BETAS = np.geomspace(0.05, 20, 49)
PLOT = Path(__file__).parents[1] / "docs" / "images" / "beta-sweep.png"
Row = dict[str, Any]


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--betas", type=float, nargs="+", default=list(BETAS))
    options.add_argument("--latents", type=int, nargs="+", default=list(LATENTS))
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--base-channels", type=int, default=16)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--plot", action="store_true", help="only draw, from the result that is there")
    given = settle(options.parse_args())
    if given.quick:
        given.betas, given.latents, given.epochs, given.base_channels = [1.0, 10.0], [16, 32], 1, 4
    return given


def job(options: argparse.Namespace, beta: float, latents: int, seed: int) -> Job:
    settings = {
        "data.source": source(options, SET),
        "seed": seed,
        "loss.kl.weight": beta,
        "model.image_size": SIZE,
        "model.latents": latents,
        "model.base_channels": options.base_channels,
        "training.epochs": options.epochs,
        "training.batch_size": options.batch_size,
        "training.early_stopping.patience": None,
        **NOT_ASKED,
        **({"data.max_images": 200} if options.quick else {}),
        **overrides(options),
    }
    return Job(f"{latents} latents, beta {beta:g}, seed {seed}", settings, {"loss": "mse_only", "model": "conv_64"})


def predicted(options: argparse.Namespace, latents: int) -> list[Row]:
    """The optimum of a linear VAE at many betas, on the validation images."""
    config = job(options, 1.0, latents, options.seeds[0]).plan(options.work_dir).run.config
    flight, _ = run_preflight(config, images(config.data.source, SIZE, config.data.max_images), torch.device("cpu"))
    return [_prediction(flight, latents, float(beta)) for beta in {*PREDICTED_BETAS.tolist(), *options.betas}]


def _prediction(flight: Preflight, latents: int, beta: float) -> Row:
    linear = flight.linear(beta)
    found = {"psnr": round(flight.validation_psnr(linear), 3), "rate_nats": round(linear.rate, 3)}
    return {"latents": latents, "beta": beta, "active_units": linear.active_units, **found}


def draw(runs: list[Row], theory: list[Row], path: Path) -> None:
    """Rate against PSNR, a color for each number of latents; points are runs, lines are linear theory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for number, latents in enumerate(sorted({row["latents"] for row in runs})):
        line = sorted((row for row in theory if row["latents"] == latents), key=lambda row: row["rate_nats"])
        points = sorted((row for row in runs if row["latents"] == latents), key=lambda row: row["beta"])
        axes.plot([r["rate_nats"] for r in line], [r["psnr"] for r in line], "--", color=f"C{number}", linewidth=1)
        axes.plot(
            [r["rate_nats"] for r in points],
            [r["psnr"] for r in points],
            "o",
            color=f"C{number}",
            label=f"{latents} latents",
        )
        for row in points:
            axes.annotate(
                f"{row['beta']:g}",
                (row["rate_nats"], row["psnr"]),
                xytext=(4, -9),
                textcoords="offset points",
                fontsize=7,
            )
    axes.set(xscale="log", xlabel="rate, nats an image", ylabel="reconstruction, dB (validation)")
    axes.set_title("beta, at each point; dashed: linear theory", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"drawn: {path.name}")


def main() -> None:
    options = read_options()
    plot = options.work_dir / PLOT.name if options.quick or options.select else PLOT
    if options.plot:
        found = earlier(options, NAME)
        if not found:
            raise ConfigError("there is no result to draw yet: run this without --plot first.")
        draw(found["runs"], found["linear_theory"], plot)
        return
    theory = [row for latents in options.latents for row in predicted(options, latents)]
    planned = {}
    for seed in options.seeds:
        for latents in options.latents:
            for beta in options.betas:
                planned[job(options, beta, latents, seed).name] = {"beta": beta, "latents": latents, "seed": seed}
    jobs = [job(options, **about) for about in planned.values()]
    rows = []
    for done, found in train_all(jobs, options.work_dir, options.processes, options.threads):
        rows.append({**planned[done.name], **found})
        print(f"{len(rows)}/{len(jobs)} {done.name}: {found['psnr']:.2f} dB, {found['rate_nats']:.0f} nats", flush=True)
    rows.sort(key=lambda entry: (entry["latents"], entry["beta"], entry["seed"]))
    theory.sort(key=lambda entry: (entry["latents"], entry["beta"]))
    save(options, NAME, {"set": SET, "image_size": SIZE, "runs": rows, "linear_theory": theory})
    draw(rows, theory, plot)
    expected = {(row["latents"], row["beta"]): row for row in theory}
    shown = [
        [
            *(entry[key] for key in ("latents", "beta", "seed", "psnr", "rate_nats", "active_units")),
            *(expected[entry["latents"], entry["beta"]][key] for key in ("psnr", "rate_nats")),
        ]
        for entry in rows
    ]
    table(["latents", "beta", "seed", "dB", "nats", "active", "predicted dB", "predicted nats"], shown)


if __name__ == "__main__":
    start(main)
