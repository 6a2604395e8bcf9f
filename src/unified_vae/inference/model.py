"""The class `VAE`: a trained model with its images, latents and samples, in a few lines.

Everything here is done by `models.vae.VAE`, to the same bits; this adds how images come in and go out, batches,
devices, and where a model lies.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor

from unified_vae.config.model import ModelConfig
from unified_vae.core.device import choose_device, without_tf32
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import ConfigError, DataError
from unified_vae.data.decode import PixelFormat, parse_color, parse_range
from unified_vae.data.sources.base import Quarantined
from unified_vae.inference import hub
from unified_vae.inference.image_grids import grid, to_pil
from unified_vae.inference.images import Images, batches, describe_unusable
from unified_vae.inference.load import load_model
from unified_vae.models import vae as network
from unified_vae.models.density import FLOW_REPLACED, NormalDensity
from unified_vae.models.pretrained import DENSITY, LatentStats

BATCH = 64
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIN_ANGLE = 1e-4  # radians, below which a turn is a straight line to float32

DensityName = Literal["fitted", "normal"]
Randomness = torch.Generator | SupportsIndex | None
"""A generator of the CPU, a seed, or None for PyTorch's own."""


@dataclass(frozen=True)
class ImagePosterior(DiagonalGaussian):
    """q(z|x) of images that were read.

    Attributes:
        names: of the image of each row, e.g. its path: files of a folder that cannot be used have no row.
    """

    names: Sequence[str] = ()


class VAE:
    """A trained model.

    Images come out as float32 [n, channels, size, size] in [0, 1], on the model's device; `inference.images` says what
    may go in. Nothing here keeps a graph: for gradients use `model`, which is an ordinary `torch.nn.Module`.

    Attributes:
        model: the network, in evaluation mode.
        config: its shape, as in the model's config file.
        description: the content of that file: the run, its figures, its data.
        latent_stats: mean, std and scale of the latents of training images; None where they were not measured.
        dtype: the network's arithmetic; weights, latents and images are float32 whatever it is.
        background: what transparent pixels are shown on.
    """

    to_pil = staticmethod(to_pil)
    grid = staticmethod(grid)

    def __init__(
        self,
        model: network.VAE,
        config: ModelConfig,
        description: Mapping[str, Any] | None = None,
        latent_stats: LatentStats | None = None,
        dtype: torch.dtype = torch.float32,
        background: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.config = config
        self.description = dict(description or {})
        self.latent_stats = latent_stats
        self.dtype = dtype
        self.background = background or str(self.description.get("background", "white"))

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> VAE:
        """Read a model.

        Args:
            path_or_hub_id: the folder of a model, of a run or of one of its checkpoints, or the model's name on the
                Hugging Face Hub, `owner/name` or `hf:owner/name`. A run without an exported model gives its best
                checkpoint.
            revision: branch, tag or commit on the hub, as the arguments after `dtype`.
            device: `auto` takes a GPU where there is one.
            dtype: float32, bfloat16 or float16: the network's arithmetic.

        Raises:
            CheckpointError: the model is damaged or of a newer version, or the run has no checkpoint yet.
            EnvironmentProblem: no such device, or the hub cannot be reached.
            ConfigError: there is no model, or an argument is wrong.
        """
        return load_vae(
            path_or_hub_id,
            device=device,
            dtype=dtype,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> Path:
        """Write a folder that `from_pretrained` reads back to the same bits, with its card; returns it.

        Args:
            license: for the card, an identifier of the hub such as `cc-by-4.0`; None keeps the run's.

        Raises:
            EnvironmentProblem: the folder cannot be written.
            ConfigError: `license` is no identifier, or the folder is a run's or holds other things of these names.
        """
        description = dict(self.description)
        if license is not None:
            description["run"] = {**description.get("run", {}), "license": license}
        return hub.save(Path(folder), self.model, self.config, description, self.latent_stats, self.background)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Any) -> str:
        """Upload the folder that `save_pretrained` writes to the Hugging Face Hub; returns the commit's address.

        Args:
            repo_id: `owner/name`; made if absent.
            options: `private`, `token`, `branch`, `create_pr`, `commit_message` of huggingface_hub.

        Raises:
            EnvironmentProblem: huggingface_hub is not installed, or the hub refuses or cannot be reached.
        """
        return hub.push(self, repo_id, license, **options)

    # --- what it is ----------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def latents(self) -> int:
        """Number of latent units."""
        return self.model.latents

    @property
    def form(self) -> PixelFormat:
        """Size, channels and background that images are brought to."""
        bounds = parse_range(self.description.get("range", "auto"))
        return PixelFormat(self.model.image_size, self.model.channels, parse_color(self.background), bounds)

    def to(self, device: str | torch.device) -> VAE:
        """Move the network; returns self."""
        self.model.to(choose_device(device))
        return self

    def __repr__(self) -> str:
        side = self.model.image_size
        return (
            f"VAE({self.config.family}, {self.model.channels} x {side} x {side} pixels, {self.latents} latents, "
            f"samples from {self.model.density.describe()}, on {self.device})"
        )

    # --- images and latents --------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Images, batch_size: int = BATCH) -> ImagePosterior:
        """q(z|x): `mean` and `logvar`, each [n, latents], and the `names` of the n images.

        Files of a folder that cannot be used are left out with a warning.

        Raises:
            DataError: something else is no image; the sentence names all such.
        """
        encoded = list(self._posteriors(images, batch_size))
        mean = torch.cat([posterior.mean for posterior, _ in encoded])
        logvar = torch.cat([posterior.logvar for posterior, _ in encoded])
        return ImagePosterior(mean, logvar, tuple(name for _, names in encoded for name in names))

    @torch.no_grad()
    def decode(self, latents: Any, batch_size: int = BATCH) -> Tensor:
        """Images [n, channels, size, size] of latents [n, latents], or of a posterior's mean."""
        return self._decode_batches(self._to_latents(latents), batch_size)

    @torch.no_grad()
    def reconstruct(self, images: Images, batch_size: int = BATCH) -> Tensor:
        """Each image decoded from the mean of its posterior; `encode(images).names` says which rows a folder has."""
        return torch.cat([self._decode(posterior.mean) for posterior, _ in self._posteriors(images, batch_size)])

    @torch.no_grad()
    def sample(
        self,
        n: SupportsIndex,
        density: DensityName = "fitted",
        temperature: float = 1.0,
        generator: Randomness = None,
        batch_size: int = BATCH,
    ) -> Tensor:
        """New images [n, channels, size, size].

        Args:
            density: `fitted` draws latents from what was fitted to those of the training images, `normal` from N(0, I).
            temperature: below 1 samples are more usual and less varied.
            generator: of the CPU for the same samples on every device, or a seed; None follows torch.manual_seed.
        """
        return self._decode_batches(self.sample_latents(n, density, temperature, generator), batch_size)

    @torch.no_grad()
    def sample_latents(
        self, n: SupportsIndex, density: DensityName = "fitted", temperature: float = 1.0, generator: Randomness = None
    ) -> Tensor:
        """The latents [n, latents] that `sample` decodes, on the model's device."""
        count = _at_least_one(n, "n")
        if density not in ("fitted", "normal"):
            raise ConfigError(f"there is no density {density!r}: give 'fitted' or 'normal'")
        if density == "fitted" and self.description.get(DENSITY, {}).get("kind") == "flow":
            warnings.warn(FLOW_REPLACED, stacklevel=3)
        if generator is None:
            generator = torch.default_generator
        elif not isinstance(generator, torch.Generator):
            try:
                generator = torch.Generator().manual_seed(operator.index(generator))
            except (TypeError, ValueError, RuntimeError):  # no whole number, or beyond 64 bits
                raise ConfigError(f"the generator is {generator!r}: give a seed or a torch.Generator") from None
        source = NormalDensity(self.latents) if density == "normal" else self.model.density
        try:
            return source.sample(count, generator, temperature).to(self.device)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @torch.no_grad()
    def interpolate(self, a: Any, b: Any, n: int = 8, spherical: bool = False, batch_size: int = BATCH) -> Tensor:
        """Interpolate between `a` and `b` in `n` images, with both ends as the model decodes them.

        Args:
            a, b: an image each, or latents [latents].
            spherical: turn from one to the other at a steady angle (White 2016, arXiv 1609.04468) instead of in a
                straight line, which keeps latents of high dimension as long as they are.
        """
        latents = interpolate_latents(self._endpoint(a), self._endpoint(b), n, spherical)
        return self._decode_batches(latents, batch_size)

    # --- inside --------------------------------------------------------------------------------------

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return without_tf32() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def _posteriors(self, images: Images, batch_size: int) -> Iterator[tuple[DiagonalGaussian, Sequence[str]]]:
        left_out, used = list[Quarantined](), 0
        for batch in batches(images, self.form, _at_least_one(batch_size, "batch_size"), self.device, left_out):
            used += len(batch.names)
            with self._arithmetic():
                posterior = self.model.encode(batch.images)
            yield posterior, batch.names
        if left_out:
            warnings.warn(f"left out: {describe_unusable(left_out, used + len(left_out))}", stacklevel=4)

    def _decode(self, latents: Tensor) -> Tensor:
        with self._arithmetic():
            images = self.model.decode(latents).float()
        if not bool(images.isfinite().all()):  # clamped, they would be black
            way = "check the latents" if self.dtype == torch.float32 else "check the latents, or load it with float32"
            raise DataError(f"decoding gave NaN/Inf, which are no pixels: {way}")
        return images.clamp(0, 1)

    def _decode_batches(self, latents: Tensor, batch_size: int) -> Tensor:
        return torch.cat([self._decode(batch) for batch in latents.split(_at_least_one(batch_size, "batch_size"))])

    def _to_latents(self, values: Any) -> Tensor:
        """Float32 [n, latents] on the device: of rows, of one row, of maps [n, c, h, w], of a posterior its mean."""
        try:
            tensor = values.mean if isinstance(values, DiagonalGaussian) else torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError):  # rows of different lengths, an unknown kind
            kind = type(values).__name__
            raise ConfigError(f"a {kind} is no latents: give a tensor or an array [n, latents]") from None
        tensor = tensor[None] if tensor.ndim == 1 else tensor
        if not tensor.ndim or not tensor.numel() or tensor.flatten(1).shape[1] != self.latents:
            raise ConfigError(f"latents of shape {list(tensor.shape)} do not fit: this model takes [n, {self.latents}]")
        return tensor.detach().flatten(1).to(self.device, torch.float32)

    def _endpoint(self, value: Any) -> Tensor:
        """The latents [latents] of one end of an interpolation, which is latents or an image."""
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) == 2 and shape[1] == self.latents and shape[0] != 1:
            raise ConfigError(
                f"an end of shape {list(shape)} may be a gray image or several latents: give an image with its "
                f"channels, or latents [{self.latents}]"
            )
        is_latents = isinstance(value, DiagonalGaussian) or shape in ((self.latents,), (1, self.latents))
        means = self._to_latents(value) if is_latents else self.encode(value).mean
        if len(means) != 1:
            raise ConfigError(f"an interpolation goes from one image to one other, and one end has {len(means)}")
        return means[0]


def load_vae(
    target: str | Path,
    checkpoint: str | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    on_message: Callable[[str], None] = warnings.warn,
    **hub_options: Any,
) -> VAE:
    """A model for images and samples: of a run the model that it exported, else its best checkpoint.

    Args:
        target, checkpoint, on_message, hub_options: as for `load_model`.
        device, dtype: as for `VAE.from_pretrained`, which raises the same errors.
    """
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"the arithmetic is float32, bfloat16 or float16, not {dtype}")
    place = choose_device(device)
    loaded = load_model(
        target, checkpoint, require_data=False, prefer_export=True, on_message=on_message, **hub_options
    )
    stats = None if loaded.export is None else loaded.export.content.stats
    return VAE(loaded.model, loaded.config.model, loaded.description, stats, chosen).to(place)


def interpolate_latents(a: Tensor, b: Tensor, n: int, spherical: bool = False) -> Tensor:
    """`n` points [n, latents] from `a` to `b`, [latents] each, both included, on their device.

    Args:
        spherical: slerp about the origin (Shoemake 1985; White 2016, arXiv 1609.04468) instead of a straight line.

    Raises:
        ConfigError: `n` is below 2.
    """
    if n < 2:
        raise ConfigError(f"an interpolation of {n} images is none: give at least 2")
    first, last = a.cpu().double(), b.cpu().double()  # MPS has no float64
    t = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    points = (1 - t) * first + t * last
    if spherical:
        cosine = torch.dot(first, last) / (first.norm() * last.norm()).clamp_min(torch.finfo(torch.float64).tiny)
        angle = torch.acos(cosine.clamp(-1, 1))
        if min(float(angle), torch.pi - float(angle)) >= MIN_ANGLE:  # opposite ends name no plane
            points = (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * last) / torch.sin(angle)
    path = points.float().to(a.device)
    path[0], path[-1] = a, b
    return path


def _at_least_one(value: Any, name: str) -> int:
    """A whole number of any kind, NumPy's as well, as an int; raises ConfigError where it is none or below 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name} is {value}: give a whole number of at least 1")
    return number
