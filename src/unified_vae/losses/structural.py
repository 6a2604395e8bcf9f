"""Distances of structure without pretrained weights: MS-SSIM, HaarPSI, Laplacian pyramid, focal frequency loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unified_vae.config.loss import FocalFrequencyConfig, HaarPSIConfig, LaplacianConfig, MSSSIMConfig
from unified_vae.losses.base import DistortionTerm


class MSSSIM(DistortionTerm, config=MSSSIMConfig):
    """1 - MS-SSIM over as many scales as the image has room for, their exponents renormalized to sum to 1.

    Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", Asilomar 2003.
    """

    SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # section 3.2, finest first
    WINDOW, SIGMA = 11, 1.5
    C1, C2 = 0.01**2, 0.03**2
    SMALL = 0.01  # similarities below this are replaced by a positive continuation, so that their powers exist

    degree = 1.9
    floor = 3e-5
    minimum_size = WINDOW

    def __init__(self, config: MSSSIMConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        # 1 scale at 11 px, 3 at 64, 5 at 161
        scales = sum((self.WINDOW - 1) * 2**level < image_size for level in range(len(self.SCALE_WEIGHTS)))
        weights = self.SCALE_WEIGHTS[:scales]
        self.exponents = [weight / sum(weights) for weight in weights]
        offsets = torch.arange(self.WINDOW) - (self.WINDOW - 1) / 2
        window = torch.exp(-offsets.square() / (2 * self.SIGMA**2))
        self.register_buffer("window", (window / window.sum())[None, None], persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. Channels are compared one by one and averaged."""
        batch = len(target)
        x, y = reconstruction.flatten(0, 1), target.flatten(0, 1)  # [batch * channels, H, W]
        index = torch.ones(len(x), device=x.device)
        for level, exponent in enumerate(self.exponents):
            contrast, ssim = self._similarities(x, y)
            last = level == len(self.exponents) - 1
            value = ssim if last else contrast
            # Opposite structure gives negative similarities, whose fractional powers do not exist. Clipping them would
            # leave the worst images without a gradient; this continuation is smooth, positive and of the same slope.
            continued = self.SMALL**2 / (2 * self.SMALL - value.clamp(max=self.SMALL))
            index = index * torch.where(value > self.SMALL, value, continued) ** exponent
            if not last:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return 1 - index.view(batch, -1).mean(1)

    def _similarities(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast and structure, and SSIM, of [N, H, W] planes: two [N]."""
        # Gaussian means without a border, [5 * N, H - 10, W - 10]. One group per plane: on a CPU ten times as fast as
        # one plane per batch entry.
        images = torch.cat([x, y, x * x, y * y, x * y])
        planes = len(images)
        window = self.get_buffer("window").expand(planes, 1, self.WINDOW)
        rows = F.conv2d(images[None], window[..., None], groups=planes)
        blurred = F.conv2d(rows, window[:, :, None], groups=planes)[0]
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred.chunk(5)
        spread = mean_xx - mean_x.square() + mean_yy - mean_y.square()
        contrast = (2 * (mean_xy - mean_x * mean_y) + self.C2) / (spread + self.C2)
        luminance = (2 * mean_x * mean_y + self.C1) / (mean_x.square() + mean_y.square() + self.C1)
        return contrast.mean((1, 2)), (luminance * contrast).mean((1, 2))


class HaarPSI(DistortionTerm, config=HaarPSIConfig):
    """1 - HaarPSI, from 0 (equal) to 1, made of Haar wavelets alone; color by the paper's extension to YIQ.

    Reisenhofer, Bosse, Kutyniok, Wiegand, "A Haar wavelet-based perceptual similarity index for image quality
    assessment", Signal Processing: Image Communication 2018, arXiv 1607.06140.
    """

    C = 30.0  # constants that the authors fitted to human opinions, for pixels in 0..255
    ALPHA = 4.2
    SCALES = (2, 4, 8)  # side of each Haar filter: two high frequencies to compare, one low as weight
    EMPTY_WEIGHT = 1e-6  # where no filter responds (black on black), the distance is 0 instead of 0/0
    # National Television System Committee, 1953: luma, in-phase, quadrature.
    YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))

    degree = 1.4
    floor = 1e-4
    minimum_size = 16  # the largest filter covers the halved image

    def __init__(self, config: HaarPSIConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.register_buffer("yiq", torch.tensor(self.YIQ)[:, :, None, None], persistent=False)
        for side in self.SCALES:
            horizontal = torch.full((side, side), 1 / side)
            horizontal[side // 2 :] *= -1
            kernels = torch.stack([horizontal, horizontal.T])[:, None]
            self.register_buffer(f"haar_{side}", kernels, persistent=False)

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. Grayscale or RGB.

        HaarPSI = (logit(mean of l(1 - d)) / alpha)^2 with dissimilarities d and l(t) = sigmoid(alpha t). It is written
        in differences from l(1), because 1 - HaarPSI of nearly equal images would otherwise be rounding noise of
        either sign: l(1) - l(1 - d) = l(1) * sigmoid(alpha d - alpha) * (1 - exp(-alpha d)).
        """
        x, y = self._halved(reconstruction), self._halved(target)
        *high_x, low_x = self._coefficients(x[:, :1])
        *high_y, low_y = self._coefficients(y[:, :1])
        dissimilarity = torch.stack([self._dissimilarity(a, b) for a, b in zip(high_x, high_y, strict=True)]).mean(0)
        weight = torch.maximum(low_x, low_y)  # [B, 2, H, W]
        if x.shape[1] == 3:  # locally averaged I and Q
            chroma_x, chroma_y = (
                F.avg_pool2d(F.pad(image[:, 1:], (0, 1, 0, 1)), 2, stride=1).abs() for image in (x, y)
            )
            chroma = self._dissimilarity(chroma_x, chroma_y).mean(1, keepdim=True)
            dissimilarity = torch.cat([dissimilarity, chroma], 1)
            weight = torch.cat([weight, weight.mean(1, keepdim=True)], 1)

        alpha, equal = self.ALPHA, 1 / (1 + math.exp(-self.ALPHA))  # the logistic of similarity 1
        lost = -equal * torch.sigmoid(alpha * dissimilarity - alpha) * torch.expm1(-alpha * dissimilarity)
        mean_lost = (lost * weight).flatten(1).sum(1) / (weight.flatten(1).sum(1) + self.EMPTY_WEIGHT)
        step = (torch.log1p(mean_lost / (1 - equal)) - torch.log1p(-mean_lost / equal)) / alpha
        return step * (2 - step)  # 1 - (1 - step)^2

    def _halved(self, images: Tensor) -> Tensor:
        """Gray or YIQ in 0..255, halved, as a viewer's distance does."""
        colors = F.conv2d(images, self.get_buffer("yiq")) if images.shape[1] == 3 else images
        height, width = images.shape[-2:]
        return F.avg_pool2d(F.pad(255 * colors, (0, width % 2, 0, height % 2)), 2)

    def _coefficients(self, luma: Tensor) -> list[Tensor]:
        """Magnitudes of the Haar coefficients at each scale, [B, 2 orientations, H, W], with zeros around the image."""
        return [
            F.conv2d(
                F.pad(luma, (side // 2 - 1, side // 2, side // 2 - 1, side // 2)), self.get_buffer(f"haar_{side}")
            ).abs()
            for side in self.SCALES
        ]

    def _dissimilarity(self, a: Tensor, b: Tensor) -> Tensor:
        """1 - (2ab + C) / (a^2 + b^2 + C) of two magnitudes: 0 for equal ones, up to 1."""
        return (a - b).square() / (a.square() + b.square() + self.C)


class Laplacian(DistortionTerm, config=LaplacianConfig):
    """Lap1: sum over the levels of a Laplacian pyramid of the mean absolute error, the low-pass rest included.

    Lap1 weights level j by 2^(2j). A level has 2^(2j) times fewer values than the image, so this sum divided by the
    number of pixel values is the sum of the levels' means.

    Bojanowski, Joulin, Lopez-Paz, Szlam, "Optimizing the latent space of generative networks", ICML 2018, arXiv
    1707.05776; the pyramid is that of Burt & Adelson, "The Laplacian pyramid as a compact image code", 1983.
    """

    BINOMIAL = (6.0, 4.0, 1.0)  # Burt and Adelson's filter 1 4 6 4 1, from its center outwards
    REST = 8  # pixels; an image of this side is not divided any further

    degree = 1.0
    floor = 1.4e-3
    minimum_size = REST + 1

    def __init__(self, config: LaplacianConfig, image_size: int) -> None:
        super().__init__(config, image_size)
        self.sides = [image_size]  # of each level, finest first: 64, 32, 16 and the rest of 8; odd sides are rounded up
        while self.sides[-1] > self.REST:
            side = self.sides[-1]
            distance = (torch.arange(side)[:, None] - torch.arange(side)).abs()
            smooth = torch.tensor([*self.BINOMIAL, 0.0])[distance.clamp(max=len(self.BINOMIAL))]
            # [ceil(side / 2), side], every second value of the smoothed signal; and [side, ceil(side / 2)], the values
            # between interpolated by the same filter. Rows sum to 1, also at the borders.
            halve, double = smooth[::2], smooth[:, ::2]
            self.register_buffer(f"halve_{side}", halve / halve.sum(1, keepdim=True), persistent=False)
            self.register_buffer(f"double_{side}", double / double.sum(1, keepdim=True), persistent=False)
            self.sides.append((side + 1) // 2)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """[batch, channels, side, side] of each level: what halving lost, finest first, and the rest."""
        levels = []
        for side in self.sides[:-1]:
            halve, double = self.get_buffer(f"halve_{side}"), self.get_buffer(f"double_{side}")
            smaller = halve @ images @ halve.T  # matrices: exact borders and odd sides, and the fastest on a CPU
            levels.append(images - double @ smaller @ double.T)
            images = smaller
        return [*levels, images]

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`. The pyramid is linear: that of the error replaces those of both images."""
        levels = self.pyramid(reconstruction - target)
        return torch.stack([level.abs().flatten(1).mean(1) for level in levels]).sum(0)


class FocalFrequency(DistortionTerm, config=FocalFrequencyConfig):
    """Mean over frequencies of weight * |error's spectrum|^2, the spectrum taken of the whole image.

    The weight is (|error's spectrum| / its greatest value)^alpha, of each image and channel by itself. It takes
    no gradient. At alpha 0 this is the mean squared error (Parseval). The paper's experiments use alpha 1.

    Jiang, Dai, Wu, Loy, "Focal frequency loss for image reconstruction and synthesis", ICCV 2021, arXiv 2012.12821.
    """

    degree = 2.0  # exactly: the weights do not change when the error is scaled
    floor = 6e-7

    def __init__(self, config: FocalFrequencyConfig, image_size: int | None = None) -> None:
        super().__init__(config, image_size)
        self.alpha = config.alpha

    def forward(self, reconstruction: Tensor, target: Tensor) -> Tensor:
        """See `DistortionTerm.forward`."""
        height, width = target.shape[-2:]
        spectrum = torch.fft.rfft2(reconstruction - target, norm="ortho")  # [B, C, H, W // 2 + 1], linear
        power = spectrum.real.square() + spectrum.imag.square()
        fixed = power.detach()
        greatest = fixed.amax((2, 3), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)  # no 0/0 where equal
        weight = (fixed / greatest) ** (self.alpha / 2)
        # The half spectrum of a real image has all columns of the whole one twice, but for the first and the middle.
        columns = torch.arange(width // 2 + 1, device=power.device)
        multiplicity = torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0)
        return ((weight * power).sum(2) * multiplicity).sum(2).mean(1) / (height * width)
