"""The start from few images: dB on val/ of as many components as latents, of the shrunk covariance and of a PCA.

The first N of a shuffled train/, for each seed; with --select, scored on a part of train/.
"""

from __future__ import annotations

import time

import numpy as np

import runs
from script import parser, save, settle, source, start, table
from unified_vae.analysis.pca import principal_components
from unified_vae.config.data import AugmentConfig
from unified_vae.core.linear_vae import compose, project
from unified_vae.metrics.images import psnr

NAME = "few_images"
SETS = {  # size, latents, numbers of images
    "faces128": (64, 256, (50, 100, 200, 350, 700, 1800)),
    "photos256": (64, 256, (50, 100, 200, 400)),
    "cifar10": (32, 128, (50, 200, 9000)),
}


class Subset:
    """Some images of a split."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)


def main() -> None:
    options = settle(parser(NAME, __doc__).parse_args())
    rows = []
    for name, (size, latents, counts) in SETS.items():
        data = runs.images(source(options, name), size)
        unseen = runs.pixels(data.validation)
        for seed in options.seeds:
            order = np.random.default_rng(seed).permutation(len(data.train))
            for count in counts[:1] if options.quick else [n for n in counts if n <= len(order)]:
                subset, values = Subset(np.ascontiguousarray(data.train.images[np.sort(order[:count])])), {}
                for kind, asked in (("shrunk", latents), ("PCA", None)):
                    began = time.monotonic()
                    basis = principal_components(subset, 2 * latents, AugmentConfig(), 0, latents=asked)
                    seconds = time.monotonic() - began
                    linear = compose(project(unseen, basis)[:, :latents], basis, size).clamp(0, 1)
                    values[kind] = psnr(float((linear - unseen).square().mean()))
                    values[f"{kind} seconds"] = seconds
                rows.append({"set": name, "latents": latents, "seed": seed, "images": count, **values})
    headings = list(rows[0])
    table(headings, [[row[heading] for heading in headings] for row in rows])
    save(options, NAME, {"rows": rows})


if __name__ == "__main__":
    start(main)
