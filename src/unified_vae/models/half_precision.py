"""Whether a model may be computed in half precision: the range of its activations, and half precision tried.

A number above 65,504 is infinite in fp16, and what follows is a black or empty image. So the largest activation of
each layer is measured in float32, and the same images are then passed through a copy in half precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unified_vae.core.out_of_memory import is_out_of_memory
from unified_vae.models.vae import VAE

HalfName = Literal["fp16", "bf16"]
DTYPES: dict[HalfName, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
MARGIN = 4.0  # headroom that is asked for: other images go further than those that were looked at
MOST_LOST_DB = 0.1  # of PSNR
TRIED = 32  # images through the copies: a CPU computes half precision 10 to 50 times slower than float32
BATCH = 16

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how much, and of how much."""


@dataclass(frozen=True)
class HalfResult:
    """What became of one half precision.

    Attributes:
        headroom: largest number of the format / largest activation; below 1 it overflows.
        layer: where that activation is, what goes into the layer or comes out of it.
        tried: images that were computed; 0 where this device cannot.
        finite: whether all that came out was.
        psnr_loss: dB, PSNR of float32 less that of this precision, on the same images; None where not tried.
    """

    precision: HalfName
    headroom: float
    layer: str
    tried: int
    finite: bool
    psnr_loss: float | None

    @property
    def overflows(self) -> bool:
        """Whether infinite numbers arise, on the images seen."""
        return not self.finite or self.headroom < 1

    @property
    def lost_little(self) -> bool:
        """Whether next to nothing was lost; what was not tried may lose anything."""
        return self.psnr_loss is not None and self.psnr_loss <= MOST_LOST_DB

    @property
    def safe(self) -> bool:
        """Whether it may be used: room above the largest activation, and next to nothing lost."""
        return not self.overflows and self.headroom >= MARGIN and self.lost_little

    def line(self, instead: str) -> str:
        """The verdict, e.g. `fp16: safe, headroom 41x at decoder.stages.2.norm, loses 0.00 dB`.

        Args:
            instead: what to use where this is not safe.
        """
        lost = "not tried on this device" if self.psnr_loss is None else f"loses {abs(self.psnr_loss):.2f} dB"
        if self.overflows:
            return f"{self.precision}: overflows at {self.layer}: use {instead}"
        room = f"headroom {_times(self.headroom)} at {self.layer}"
        if self.headroom < MARGIN:
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
        largest: layer -> largest absolute activation, the largest first.
    """

    images: int
    device: str
    largest: dict[str, float]
    fp16: HalfResult
    bf16: HalfResult

    def of(self, precision: HalfName) -> HalfResult:
        """The result of one of them."""
        return self.fp16 if precision == "fp16" else self.bf16

    def lines(self) -> tuple[str, str]:
        """A verdict each."""
        return self.fp16.line(self._instead(self.bf16)), self.bf16.line(self._instead(self.fp16))

    @staticmethod
    def _instead(other: HalfResult) -> str:
        return other.precision if other.safe else "fp32"

    def verdict(self) -> str:
        """Both in one line, for a model card."""
        return "; ".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """For the entry `half_precision` of a model's config file; numbers that are not finite become None."""
        largest = {name: _number(value) for name, value in list(self.largest.items())[:8]}
        results: dict[str, Any] = {
            half.precision: {**_numbers(asdict(half)), "safe": half.safe} for half in (self.fp16, self.bf16)
        }
        about = {"verdict": self.verdict(), "images": self.images, "device": self.device}
        return {**about, **results, "largest_activations": largest}


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}x" if ratio >= 10 else f"{ratio:.1f}x"


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in values.items() if name != "precision"}


@torch.no_grad()
def audit(model: VAE, images: Tensor, progress: Progress | None = None) -> HalfAudit:
    """Measure ranges on all images, and try half precision on the TRIED images with the largest activations.

    Args:
        model: in float32, on the device that is asked about.
        images: uint8 [n, channels, size, size], n >= 1.

    Raises:
        RuntimeError: out of memory.
    """
    tell = progress or (lambda what, done, total: None)
    device = next(model.parameters()).device
    model = copy.deepcopy(model).eval()  # hooks of an interrupted audit stay on the copy
    largest, hardness = _ranges(model, images, device, tell)
    layer, peak = next(iter(largest.items()))
    chosen = images[hardness.argsort(descending=True, stable=True)[:TRIED].cpu()]
    results = []
    for number, (name, dtype) in enumerate(DTYPES.items()):
        tell(f"trying {name}", number, len(DTYPES))
        headroom = torch.finfo(dtype).max / peak if math.isfinite(peak) and peak > 0 else 0.0
        results.append(_tried(model, chosen, name, headroom, layer))
    return HalfAudit(len(images), str(device), largest, *results)


def _ranges(model: VAE, images: Tensor, device: torch.device, tell: Progress) -> tuple[dict[str, float], Tensor]:
    """Layer -> largest activation, descending, of encoding, and of decoding draws of q(z|x) and new samples; and the
    largest one of each image, [n]."""
    seen = _Peaks()
    hardness = []
    generator = torch.Generator().manual_seed(0)
    with seen.watching(model):
        for start in range(0, len(images), BATCH):
            tell("largest activation of each layer", start, len(images))
            batch = images[start : start + BATCH].to(device).float() / 255
            seen.begin(len(batch), device)
            posterior = model.encode(batch)
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            model.decode(posterior.sample(noise))
            hardness.append(seen.of_batch)
            seen.begin(0, device)
            model.sample(len(batch), generator)
    ordered = sorted(seen.layers.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf)
    return dict(ordered), torch.nan_to_num(torch.cat(hardness), nan=torch.inf)


class _Peaks:
    """Largest absolute value that goes into or comes out of each module.

    Attributes:
        layers: name -> value; NaN or infinite where such a number was seen.
        of_batch: [batch], the largest of each image since `begin`.
    """

    def __init__(self) -> None:
        self.layers: dict[str, float] = {}
        self.of_batch = torch.zeros(0)

    def begin(self, batch: int, device: torch.device) -> None:
        """The next images are others."""
        self.of_batch = torch.zeros(batch, device=device)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Look at each pass through `model`."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in model.named_modules() if name]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def see(module: nn.Module, given: Any, result: Any) -> None:
            for value in (*given, result):
                if isinstance(value, Tensor) and value.is_floating_point():
                    self._add(name, value.abs().flatten(1).amax(1).float())

        return see

    def _add(self, name: str, peaks: Tensor) -> None:
        largest, before = float(peaks.max()), self.layers.get(name, 0.0)
        self.layers[name] = before if largest <= before or math.isnan(before) else largest
        if peaks.shape == self.of_batch.shape:  # else something that is not one entry an image
            self.of_batch = torch.maximum(self.of_batch, peaks)


def half_copy(model: VAE, dtype: torch.dtype) -> VAE:
    """A copy whose weights and layers are of `dtype`; images, posteriors and latents stay float32.

    Each layer casts what it is given, so that the model's own casts to float32 need not be known here.
    """
    twin = copy.deepcopy(model).to(dtype)
    for module in twin.modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(_cast)
    return twin


def _cast(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in given
    )


def _tried(model: VAE, images: Tensor, name: HalfName, headroom: float, layer: str) -> HalfResult:
    try:
        loss, culprit = _compare(model, half_copy(model, DTYPES[name]), images)
    except RuntimeError as problem:
        if is_out_of_memory(problem) and "primitive descriptor" not in str(problem):  # oneDNN lacks the kernel
            raise
        # else the device lacks a kernel in this precision
        return HalfResult(name, headroom, layer, 0, True, None)
    return HalfResult(name, headroom, culprit or layer, len(images), culprit is None, loss)


def _compare(model: VAE, twin: VAE, images: Tensor) -> tuple[float | None, str | None]:
    """dB that the twin loses; and the first of its layers that is not finite, None where all are."""
    device = next(model.parameters()).device
    seen, errors = _Peaks(), torch.zeros(2, dtype=torch.float64)
    with seen.watching(twin):
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH].to(device).float() / 255
            for place, network in enumerate((model, twin)):
                restored = network.decode(network.encode(batch).mean).clamp(0, 1)
                errors[place] += float((restored - batch).square().sum())
    if culprit := next((name for name, peak in seen.layers.items() if not math.isfinite(peak)), None):
        return None, culprit
    exact, halved = errors.clamp(min=1e-12).log10().tolist()
    return 10 * (halved - exact), None
