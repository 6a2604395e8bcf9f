"""Features of Inception v3, 2015-12-05: the network that FID is defined with, as torch-fidelity has it.

Its resize is TensorFlow 1's, bit for bit; another resize changes FID by whole points (Parmar, Zhang, Zhu 2022,
arXiv 2104.11222).
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from torch import Tensor

from unified_vae.core.errors import EnvironmentProblem

FILE = "weights-inception-2015-12-05-6726825d.pth"
OTHER_NAMES = ("pt_inception-2015-12-05-6726825d.pth",)  # the same file, as pytorch-fid names it
FEATURES = 2048
SIZE = 299
EVALUATOR = "Inception v3 of 2015-12-05, features of 2,048, torch-fidelity"


def address() -> str:
    """Where the weights are published.

    Raises:
        EnvironmentProblem: torch-fidelity is not installed.
    """
    _extractor()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return str(URL_INCEPTION_V3)


class InceptionFeatures:
    """Features of images [n, 1 or 3, height, width] in [0, 1], rounded to 8 bits: [n, 2048], float32 on the CPU."""

    def __init__(self, weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Args:
        weights: a state dict as it is published, read without running code.

        Raises:
            EnvironmentProblem: torch-fidelity is not installed, or the weights are of another network.
        """
        extractor, file = _extractor(), io.BytesIO()
        torch.save(dict(weights), file)  # the library would read a path with pickle
        file.seek(0)
        try:
            self.network = extractor("inception", ["2048"], feature_extractor_weights_path=file).to(device)
        except (RuntimeError, TypeError, AttributeError) as problem:
            why = str(problem).splitlines()[0].rstrip(":.")
            raise EnvironmentProblem(f"the weights are not those of Inception v3 ({why})") from None
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        pixels = (images.to(self.device).clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
        found: Tensor = self.network(pixels)[0]
        return found.float().cpu()


def _extractor() -> type:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise EnvironmentProblem("it needs the package torch-fidelity: uv sync --extra metrics") from None
    found: type = FeatureExtractorInceptionV3
    return found
