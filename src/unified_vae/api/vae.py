"""The class `VAE`: a trained model with its images, latents and samples, in a few lines.

Everything here is done by `models.vae.VAE`, to the same bits; this adds how images come in and go out, batches,
devices, and where a model lies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from unified_vae.api.drawing import DensityName, Randomness, at_least_one, draw_latents
from unified_vae.api.images import Images, batches, unusable
from unified_vae.api.latents import ImagePosterior, as_rows, is_one_row
from unified_vae.api.pictures import grid, to_pil
from unified_vae.api.place import chosen_device, chosen_dtype, model_folder
from unified_vae.api.saving import save
from unified_vae.api.walk import walk
from unified_vae.config.model import ModelConfig
from unified_vae.core.errors import ConfigError
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.data.decode import PixelFormat, parse_color
from unified_vae.data.sources.base import Quarantined
from unified_vae.models import vae as network
from unified_vae.models.density import FLOW_REPLACED
from unified_vae.models.pretrained import DENSITY, LatentStats, open_pretrained

BATCH = 64


class VAE:
    """A trained model.

    Images come out as float32 [n, channels, size, size] in [0, 1], on the model's device; `api.images` says what may
    go in. Nothing here keeps a graph: for gradients use `model`, which is an ordinary `torch.nn.Module`.

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
            path_or_hub_id: the folder of a model, of a run that has one, or the model's name on the Hugging Face Hub,
                `owner/name` or `hf:owner/name`.
            revision: branch, tag or commit on the hub, as the arguments after `dtype`.
            device: `auto` takes a GPU where there is one.
            dtype: float32, bfloat16 or float16: the network's arithmetic.

        Raises:
            CheckpointError: there is no model, or it is damaged or of a newer version.
            EnvironmentProblem: no such device, or the hub cannot be reached.
            ConfigError: an argument is wrong.
        """
        folder = model_folder(
            path_or_hub_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        arithmetic = chosen_dtype(dtype)
        found = open_pretrained(folder, chosen_device(device))
        return cls(found.model, found.config, found.description, found.stats, arithmetic)

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
        return save(Path(folder), self.model, self.config, description, self.latent_stats, self.background)

    def push_to_hub(self, repo_id: str, *, license: str | None = None, **options: Any) -> str:
        """Upload the folder that `save_pretrained` writes to the Hugging Face Hub; returns the commit's address.

        Args:
            repo_id: `owner/name`; made if absent.
            options: `private`, `token`, `branch`, `create_pr`, `commit_message` of huggingface_hub.

        Raises:
            EnvironmentProblem: huggingface_hub is not installed, or the hub refuses or cannot be reached.
        """
        from unified_vae.api.hub import push  # needs a package that may be absent

        return push(self, repo_id, license, **options)

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
        return PixelFormat(self.model.image_size, self.model.channels, parse_color(self.background))

    def to(self, device: str | torch.device) -> VAE:
        """Move the network; returns self."""
        self.model.to(chosen_device(device))
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
        found = list(self._posteriors(images, batch_size))
        mean = torch.cat([each.mean for each, _ in found])
        logvar = torch.cat([each.logvar for each, _ in found])
        return ImagePosterior(mean, logvar, tuple(name for _, names in found for name in names))

    @torch.no_grad()
    def decode(self, latents: Any, batch_size: int = BATCH) -> Tensor:
        """Images [n, channels, size, size] of latents [n, latents], or of a posterior's mean."""
        return torch.cat(list(self._decoded(self._latents(latents), batch_size)))

    @torch.no_grad()
    def reconstruct(self, images: Images, batch_size: int = BATCH) -> Tensor:
        """Each image decoded from the mean of its posterior; `encode(images).names` says which rows a folder has."""
        return torch.cat([self._images(each.mean) for each, _ in self._posteriors(images, batch_size)])

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
        latents = self.sample_latents(n, density, temperature, generator)
        return torch.cat(list(self._decoded(latents, batch_size)))

    @torch.no_grad()
    def sample_latents(
        self,
        n: SupportsIndex,
        density: DensityName = "fitted",
        temperature: float = 1.0,
        generator: Randomness = None,
    ) -> Tensor:
        """The latents [n, latents] that `sample` decodes, on the model's device."""
        if density == "fitted" and self.description.get(DENSITY, {}).get("kind") == "flow":
            warnings.warn(FLOW_REPLACED, stacklevel=3)
        return draw_latents(self.model, n, density, temperature, generator).to(self.device)

    @torch.no_grad()
    def interpolate(self, a: Any, b: Any, n: int = 8, spherical: bool = False, batch_size: int = BATCH) -> Tensor:
        """A walk of `n` images from `a` to `b`, with both ends as the model decodes them.

        Args:
            a, b: an image each, or latents [latents].
            spherical: turn from one to the other at a steady angle (White 2016, arXiv 1609.04468) instead of in a
                straight line, which keeps latents of high dimension as long as they are.
        """
        latents = walk(self._end(a), self._end(b), n, spherical)
        return torch.cat(list(self._decoded(latents, batch_size)))

    # --- inside --------------------------------------------------------------------------------------

    def _arithmetic(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)

    def _posteriors(self, images: Images, batch_size: int) -> Iterator[tuple[DiagonalGaussian, Sequence[str]]]:
        left_out, used = list[Quarantined](), 0
        for batch in batches(images, self.form, at_least_one(batch_size, "batch_size"), self.device, left_out):
            used += len(batch.names)
            with self._arithmetic():
                posterior = self.model.encode(batch.images)
            yield posterior, batch.names
        if left_out:
            warnings.warn(f"left out: {unusable(left_out, used + len(left_out))}", stacklevel=4)

    def _decoded(self, latents: Tensor, batch_size: int) -> Iterator[Tensor]:
        return (self._images(some) for some in latents.split(at_least_one(batch_size, "batch_size")))

    def _images(self, latents: Tensor) -> Tensor:
        with self._arithmetic():
            return self.model.decode(latents).float().clamp(0, 1)

    def _latents(self, given: Any) -> Tensor:
        return as_rows(given, self.latents, self.device)

    def _end(self, given: Any) -> Tensor:
        """The latents [latents] of one end of a walk."""
        means = self._latents(given) if is_one_row(given, self.latents) else self.encode(given).mean
        if len(means) != 1:
            raise ConfigError(f"a walk goes from one image to one other, and one end has {len(means)}")
        return means[0]
