"""The formats of an export: ONNX, torch.export, a folder for diffusers, and our own model folder."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.config.model import SpatialConfig
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.events import Observer
from unified_vae.core.files import write_text
from unified_vae.export.precision import HalfAudit
from unified_vae.inference.hub import CARD, SAMPLES, write_card
from unified_vae.inference.load import LoadedModel, TrainedModel
from unified_vae.models.autoencoder_kl import diffusers_key, norm_groups
from unified_vae.models.density import FILE_NAME as DENSITY_FILE
from unified_vae.models.pretrained import STATS, LatentStats, describe, save_pretrained
from unified_vae.models.vae import VAE

BATCHES = (1, 2, 7)  # sizes that an export is compared at: the smallest, the traced one, an odd one
LARGE_BATCHES = (1, 2, 3)  # where 7 images would take gigabytes
LARGE_SIZE = 256  # pixels along a side, above which that is so
OPSET = 20
MAX_ONNX_BYTES = 2**31 - 2**24  # protobuf takes no more; the weights of larger models lie beside the file
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
MAX_CARD_ROWS = 32


class _Encoder(nn.Module):
    """Images -> posterior mean and log variance."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(images)
        return posterior.mean, posterior.logvar


class _Decoder(nn.Module):
    """Latents -> images."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        return (self.model.decode(latents),)


@dataclass(frozen=True)
class Part:
    """Encoder or decoder of a model as a graph with named inputs and outputs.

    Attributes:
        name: `encoder` or `decoder`.
        module: float32 in and out, whatever its inner precision; a tuple out.
        input_name: of its input.
        shape: of one item of the input.
        output_names: of its outputs.
        batches: sizes that it is compared at.
    """

    name: str
    module: nn.Module
    input_name: str
    shape: tuple[int, ...]
    output_names: tuple[str, ...]
    batches: tuple[int, ...] = BATCHES

    def example(self, batch: int) -> Tensor:
        """Return input numbers [batch, *shape], the same at each call: uniform pixels, or standard normal latents."""
        generator = torch.Generator().manual_seed(batch)
        draw = torch.rand if self.input_name == "images" else torch.randn
        return draw((batch, *self.shape), generator=generator)

    @torch.no_grad()
    def outputs(self, batch: int) -> tuple[Tensor, ...]:
        """Return what PyTorch computes from `example(batch)`."""
        result: tuple[Tensor, ...] = self.module(self.example(batch))
        return result

    def traced(self) -> torch.export.ExportedProgram:
        """Return the graph and its own weights, for a batch of any size, or up to where the model branches."""

        def trace(module: nn.Module, batch: Any) -> torch.export.ExportedProgram:
            with torch.no_grad():
                return torch.export.export(module, (self.example(2),), dynamic_shapes=({0: batch},))

        try:
            batch = torch.export.Dim("batch", min=1)
            program = trace(self.module, batch)
        except torch._dynamo.exc.UserError:
            free = trace(self.module, torch.export.Dim.DYNAMIC)
            limit = min(int(bounds.upper) for bounds in free.range_constraints.values())
            batch = torch.export.Dim("batch", min=1, max=limit)
            program = trace(self.module, batch)

        # trace again without the weights of the model's other half
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        unused = [names[node.name] for node in program.graph.nodes if node.name in names and not node.users]
        if not unused:
            return program
        lean = copy.deepcopy(self.module)
        for name in unused:
            owner, _, leaf = name.rpartition(".")
            delattr(lean.get_submodule(owner), leaf)
        return trace(lean, batch)


def parts(model: VAE) -> list[Part]:
    """Return encoder and decoder of a model on the CPU."""
    pixels = (model.channels, model.image_size, model.image_size)
    batches = BATCHES if model.image_size <= LARGE_SIZE else LARGE_BATCHES
    return [
        Part("encoder", _Encoder(model).eval(), "images", pixels, ("mean", "logvar"), batches),
        Part("decoder", _Decoder(model).eval(), "latents", (model.latents,), ("image",), batches),
    ]


# --- graphs ----------------------------------------------------------------------------------------------


def write_onnx(path: Path, part: Part, facts: Mapping[str, str]) -> None:
    """Write one ONNX file and run the format's own checker on it.

    Args:
        facts: written into the file's `metadata_props`.
    """
    import onnx
    import onnx_ir

    with quiet():
        program: Any = torch.onnx.export(
            part.traced(), (part.example(2),), dynamo=True, opset_version=OPSET, verbose=False
        )
    for node in program.model.graph:
        for value in node.outputs:
            value.name = f"inner_{value.name}"  # an inner value must not have the name of an input or output
    ends = (*program.model.graph.inputs, *program.model.graph.outputs)
    for value, name in zip(ends, (part.input_name, *part.output_names), strict=True):
        value.name = name
        value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])
    program.model.metadata_props.update(facts)
    size = sum(value.nbytes for value in part.module.state_dict().values())
    program.save(str(path), external_data=size > MAX_ONNX_BYTES)
    onnx.checker.check_model(str(path), full_check=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' remarks, which are for their developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


# --- our own folder --------------------------------------------------------------------------------------


def write_folder(
    stage: Path, loaded: LoadedModel, about: Mapping[str, Any], finished: TrainedModel | None, observer: Observer
) -> None:
    """Write the model folder that a finished run has: safetensors and config.json, from any checkpoint.

    Args:
        about: further entries of the config file.
        finished: the folder of these weights, whose density, statistics and card are taken over.
    """
    save_pretrained(stage, loaded.config.model, loaded.model.state_dict(), about)
    if finished is None:
        write_card(stage, loaded.model, {**about, "model": loaded.config.model.model_dump()})
        observer.notice("no latent density was fitted to these weights: new images are sampled from N(0, I)")
        return
    known = dict(finished.content.description)
    known["run"] = {**known.get("run", {}), "weights": loaded.weights}
    for name in (DENSITY_FILE, STATS, CARD, SAMPLES):
        if (finished.folder / name).is_file():
            shutil.copyfile(finished.folder / name, stage / name)
    describe(stage, {name: entry for name, entry in known.items() if name not in ("format", "model")})


# --- diffusers -------------------------------------------------------------------------------------------

DIFFUSERS_CARD = """\
---
license: {license}
library_name: diffusers
tags:
- autoencoder-kl
- unified-vae
---

# AutoencoderKL f{factor}, {latent_channels} channels

A KL autoencoder of images of {size} x {size} pixels, trained with unified-vae. Its latents are {side} x {side} \
positions with {latent_channels} channels. Images of other sizes are taken too, in multiples of {factor} pixels.

## Load

```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained(".")  # this folder, or its name on the hub
latents = vae.encode(2 * images - 1).latent_dist.sample()  # images in 0..1: [n, {channels}, {size}, {size}]
latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor  # what a diffusion model is trained on
decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample  # in -1..1
images = (0.5 + 0.5 * decoded).clamp(0, 1)
```

## Latents

Draws from the posteriors of {images:,} training images have mean {shift:.4g} and standard deviation {deviation:.4g} \
over all channels and positions: `shift_factor` {shift:.6g}, `scaling_factor` {scale:.6g}. Pipelines that know no \
shift (Stable Diffusion 1, 2 and XL) would leave the mean where it is, {remaining:.2g} standard deviations from 0.

| channel | mean | standard deviation |
|---|---|---|
{rows}

## Half precision

{verdict}.

## Training

| | |
|---|---|
{training}
"""


def write_diffusers(
    stage: Path, loaded: LoadedModel, config: SpatialConfig, stats: LatentStats, audit: HalfAudit | None
) -> None:
    """Write a folder that `diffusers.AutoencoderKL.from_pretrained` opens: weights, config and card.

    The weights are the model's own under diffusers' names; pixels are in [-1, 1] there. A diffusion model is trained on
    (z - shift_factor) * scaling_factor, as with Stable Diffusion 3 and Flux, which has mean 0 and variance 1 over all
    channels and positions. Where fp16 is safe, diffusers need not compute in float32 (`force_upcast`).
    """
    weights = {diffusers_key(name): value for name, value in loaded.model.state_dict().items()}
    write_tensors(stage / DIFFUSERS_WEIGHTS, weights)
    stages = len(config.widths)
    settings = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": version("diffusers"),
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "force_upcast": audit is None or not audit.fp16.safe,
        "in_channels": config.channels,
        "latent_channels": config.latent_channels,
        "latents_mean": None,
        "latents_std": None,
        "layers_per_block": config.layers_per_block,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": norm_groups(config.base_channels),
        "out_channels": config.channels,
        "sample_size": config.image_size,
        "scaling_factor": stats.scale,
        "shift_factor": stats.shift,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
        "use_post_quant_conv": config.quant_convs,
        "use_quant_conv": config.quant_convs,
    }
    write_text(stage / "config.json", json.dumps(settings, indent=2) + "\n")

    # the card: mean and deviation of each channel, and how the model was trained
    means = stats.mean.double().unflatten(0, (config.latent_channels, -1))
    squares = stats.std.double().unflatten(0, (config.latent_channels, -1)).square() + means.square()
    mean = means.mean(1)
    std = (squares.mean(1) - mean.square()).clamp_min(0).sqrt()
    loss = loaded.config.loss
    terms = [f"{name} {term.weight:g}" for name, term in loss.distortion_terms().items()]
    names = dict(loaded.record.names) if loaded.record else {}
    training: Sequence[tuple[str, str]] = [
        ("run", (loaded.run_dir or loaded.home).resolve().name),
        ("step", "unknown" if loaded.step is None else f"{loaded.step:,}"),
        *((f"preset: {kind}" if kind != "mode" else kind, f"`{name}`") for kind, name in names.items()),
        ("loss", ", ".join([*terms, f"beta {loss.kl.weight:g}"])),
    ]
    card = DIFFUSERS_CARD.format(
        license=loaded.config.license,
        factor=config.downsample_factor,
        latent_channels=config.latent_channels,
        channels=config.channels,
        size=config.image_size,
        side=config.side,
        images=stats.images,
        shift=stats.shift,
        scale=stats.scale,
        deviation=1 / stats.scale,
        remaining=stats.shift * stats.scale,
        rows="\n".join(f"| {n} | {mean[n]:.4g} | {std[n]:.4g} |" for n in range(min(len(mean), MAX_CARD_ROWS))),
        verdict="Not audited" if audit is None else "; ".join(audit.lines()),
        training="\n".join(f"| {name} | {value} |" for name, value in training),
    )
    write_text(stage / CARD, card)
