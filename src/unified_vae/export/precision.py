"""Whether a model may be computed in half precision: fp16 and bf16 against float32 on real images.

A number above 65,504 is infinite in fp16, and what follows is a black or empty image. So the largest activation is
measured in float32, and images are reconstructed by a copy in half precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unified_vae.core.device import is_out_of_memory
from unified_vae.models.vae import VAE

HalfName = Literal["fp16", "bf16"]
DTYPES: dict[HalfName, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
MIN_HEADROOM = 4.0  # other images go further than those that were measured
MAX_PSNR_LOSS = 0.1  # dB
COMPARED_IMAGES = 32  # a CPU computes half precision 10 to 50 times slower than float32
BATCH = 16

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how much, and of how much."""


@dataclass(frozen=True)
class HalfResult:
    """The verdict on one half precision.

    Attributes:
        headroom: largest number of the format / largest activation; below 1 it overflows.
        layer: where that activation is, an input or an output of the layer.
        psnr_loss: dB, PSNR of float32 less that of this precision, on the same images; infinite where the images have
            NaN/Inf, None where this device cannot compute them.
    """

    precision: HalfName
    headroom: float
    layer: str
    psnr_loss: float | None

    @property
    def overflows(self) -> bool:
        """Whether NaN/Inf arise, on the images seen."""
        return self.headroom < 1 or self.psnr_loss == math.inf

    @property
    def safe(self) -> bool:
        """Whether it may be used: room above the largest activation, and next to nothing lost."""
        return self.headroom >= MIN_HEADROOM and self.psnr_loss is not None and self.psnr_loss <= MAX_PSNR_LOSS

    def line(self, instead: str) -> str:
        """Return the verdict, e.g. `fp16: safe, headroom 41x at decoder.stages.2.norm, loses 0.00 dB`.

        Args:
            instead: what to use where this is not safe.
        """
        if self.overflows:
            return f"{self.precision}: overflows at {self.layer}: use {instead}"
        lost = "not tried on this device" if self.psnr_loss is None else f"loses {abs(self.psnr_loss):.2f} dB"
        room = f"headroom {self.headroom:,.{0 if self.headroom >= 10 else 1}f}x at {self.layer}"
        if self.headroom < MIN_HEADROOM:
            return f"{self.precision}: only {room}: use {instead}"
        if not self.safe:
            return f"{self.precision}: {lost}: use {instead}"
        return f"{self.precision}: safe, {room}, {lost}" if self.precision == "fp16" else f"bf16: safe, {lost}"


@dataclass(frozen=True)
class HalfAudit:
    """Both half precisions, on some images.

    Attributes:
        images: whose activations were measured; as many new samples were decoded.
        device: where.
    """

    images: int
    device: str
    fp16: HalfResult
    bf16: HalfResult

    def lines(self) -> tuple[str, str]:
        """Return a verdict for each."""
        alternatives = [half.precision if half.safe else "fp32" for half in (self.bf16, self.fp16)]
        return self.fp16.line(alternatives[0]), self.bf16.line(alternatives[1])

    def to_json(self) -> dict[str, Any]:
        """Return the entry `half_precision` of a model's config file; NaN/Inf become None."""
        content: dict[str, Any] = {"verdict": "; ".join(self.lines()), "images": self.images, "device": self.device}
        for half in (self.fp16, self.bf16):
            loss = half.psnr_loss if math.isfinite(half.psnr_loss or 0.0) else None
            entry = {"headroom": half.headroom, "layer": half.layer, "overflows": half.overflows, "psnr_loss": loss}
            content[half.precision] = {**entry, "safe": half.safe}
        return content


@torch.no_grad()
def audit(model: VAE, images: Tensor, progress: Progress = lambda *_: None) -> HalfAudit:
    """Measure activations on all images, and the loss of half precision on the first COMPARED_IMAGES.

    Args:
        model: in float32, on the device that is asked about.
        images: uint8 [n, channels, size, size], n >= 1.

    Raises:
        RuntimeError: out of memory.
    """
    device, peaks = next(model.parameters()).device, dict[str, float]()
    model = copy.deepcopy(model).eval()

    def record_peak(name: str, _: nn.Module, inputs: Any, output: Any) -> None:
        for value in (*inputs, output):
            if isinstance(value, Tensor) and value.is_floating_point():
                peak = float(value.abs().max())
                peaks[name] = max(peaks.get(name, 0.0), math.inf if math.isnan(peak) else peak)

    # the largest activation of encoding, and of decoding draws of q(z|x) and new samples
    handles = [
        module.register_forward_hook(partial(record_peak, name)) for name, module in model.named_modules() if name
    ]
    generator = torch.Generator().manual_seed(0)
    for start in range(0, len(images), BATCH):
        progress("largest activation of each layer", start, len(images))
        posterior = model.encode(images[start : start + BATCH].to(device).float() / 255)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        model.decode(posterior.sample(noise))
        model.sample(len(noise), generator)
    for handle in handles:
        handle.remove()
    layer = max(peaks, key=lambda name: peaks[name])

    # the same reconstructions in float32 and in half precision
    def pixel_error(network: VAE) -> float:
        """Sum of squares; NaN/Inf where anything that is decoded is."""
        error = 0.0
        for batch in (images[:COMPARED_IMAGES].to(device).float() / 255).split(BATCH):
            decoded = network.decode(network.encode(batch).mean)
            error += float((decoded.clamp(0, 1) - batch).square().sum() + 0.0 * decoded.sum())
        return max(error, 1e-12)

    exact, results = pixel_error(model), []
    for number, (name, dtype) in enumerate(DTYPES.items()):
        progress(f"trying {name}", number, len(DTYPES))
        try:
            half = pixel_error(half_copy(model, dtype))
            loss = 10 * math.log10(half / exact) if math.isfinite(half) else math.inf
        except RuntimeError as error:
            if is_out_of_memory(error) and "primitive descriptor" not in str(error):  # oneDNN lacks the kernel
                raise
            loss = None  # the device lacks a kernel in this precision
        headroom = torch.finfo(dtype).max / max(peaks[layer], torch.finfo(torch.float32).tiny)
        results.append(HalfResult(name, headroom, layer, loss))
    return HalfAudit(len(images), str(device), *results)


def half_copy(model: VAE, dtype: torch.dtype) -> VAE:
    """Return a copy whose weights and layers are of `dtype`; images, posteriors and latents stay float32.

    Each layer casts its inputs, so that the model's own casts to float32 need not be known here.
    """

    def cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = next(module.parameters(recurse=False)).dtype
        return tuple(
            value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs
        )

    twin = copy.deepcopy(model).to(dtype)
    for module in twin.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(cast_inputs)
    return twin
