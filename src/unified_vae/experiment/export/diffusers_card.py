"""The README.md of a folder for diffusers: how to load it, what its latents are like, what it was trained on."""

from __future__ import annotations

from unified_vae.config.model import SpatialConfig
from unified_vae.experiment.subject.subject import Subject
from unified_vae.models.half_precision import HalfAudit
from unified_vae.models.latent_stats import LatentStats

MOST_ROWS = 32  # of the table of channels

_LOAD = """\
```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained(".")  # this folder, or its name on the hub
latents = vae.encode(2 * images - 1).latent_dist.sample()  # images in 0..1: [n, {channels}, {size}, {size}]
latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor  # what a diffusion model is trained on
decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample  # in -1..1
images = (0.5 + 0.5 * decoded).clamp(0, 1)
```"""


def card(subject: Subject, config: SpatialConfig, stats: LatentStats, audit: HalfAudit | None) -> str:
    """The text."""
    parts = [
        f"---\nlicense: {subject.config.license}\nlibrary_name: diffusers\ntags:\n- autoencoder-kl\n- unified-vae\n---",
        f"# AutoencoderKL f{config.downsample_factor}, {config.latent_channels} channels",
        _what(config),
        "## Load",
        _LOAD.format(channels=config.channels, size=config.image_size),
        "## Latents",
        _latents(config, stats),
        "## Half precision",
        "Not audited." if audit is None else f"{audit.verdict()}.",
        "## Training",
        _training(subject),
    ]
    return "\n\n".join(parts) + "\n"


def _what(config: SpatialConfig) -> str:
    size, side = config.image_size, config.side
    return (
        f"A KL autoencoder of images of {size} x {size} pixels, trained with unified-vae. Its latents are {side} x "
        f"{side} positions with {config.latent_channels} channels. Images of other sizes are taken too, in multiples "
        f"of {config.downsample_factor} pixels."
    )


def _latents(config: SpatialConfig, stats: LatentStats) -> str:
    """The factors, and mean and standard deviation of each channel."""
    means = stats.mean.double().unflatten(0, (config.latent_channels, -1))
    squares = stats.std.double().unflatten(0, (config.latent_channels, -1)).square() + means.square()
    mean = means.mean(1)
    std = (squares.mean(1) - mean.square()).clamp_min(0).sqrt()
    rows = [f"| {number} | {mean[number]:.4g} | {std[number]:.4g} |" for number in range(min(len(mean), MOST_ROWS))]
    measured = (
        f"Draws from the posteriors of {stats.images:,} training images have mean {stats.shift:.4g} and standard "
        f"deviation {1 / stats.scale:.4g} over all channels and positions: `shift_factor` {stats.shift:.6g}, "
        f"`scaling_factor` {stats.scale:.6g}. Pipelines that know no shift (Stable Diffusion 1, 2 and XL) would leave "
        f"the mean where it is, {stats.shift * stats.scale:.2g} standard deviations from 0."
    )
    return "\n".join([measured, "", "| channel | mean | standard deviation |", "|---|---|---|", *rows])


def _training(subject: Subject) -> str:
    loss = subject.config.loss
    terms = [f"{name} {term.weight:g}" for name, term in loss.distortion_terms().items()]
    names = dict(subject.record.names) if subject.record else {}
    rows = [
        ("run", (subject.run_dir or subject.home).resolve().name),
        ("step", "unknown" if subject.step is None else f"{subject.step:,}"),
        *((f"preset: {kind}" if kind != "mode" else kind, f"`{name}`") for kind, name in names.items()),
        ("loss", ", ".join([*terms, f"beta {loss.kl.weight:g}"])),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
