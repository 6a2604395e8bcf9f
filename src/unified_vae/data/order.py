"""The order of images: a pure function of (seed, step), so that nothing of it has to be saved. No torch here.

An epoch is a permutation of all images, wrapped round to a whole number of batches (as DistributedSampler
pads), so that each image is seen in each epoch. A rank takes its contiguous share of the global batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unified_vae.core.counter import key, permutation


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Optimizer steps that pass over all images: ceil(n / batch)."""
    return -(-n_images // batch_size)


def batch_indices(seed: int, step: int, n_images: int, batch_size: int) -> npt.NDArray[np.int64]:
    """The images of the global batch of a step, shape [batch_size]."""
    epoch, place = divmod(step, steps_per_epoch(n_images, batch_size))
    order = _epoch_order(seed, epoch, n_images)
    return order.take(np.arange(place * batch_size, (place + 1) * batch_size), mode="wrap")


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, n_images: int) -> npt.NDArray[np.int64]:
    order = permutation(key(seed, "order", epoch), n_images)
    order.flags.writeable = False  # it is shared between calls
    return order


def share(count: int, rank: int, world_size: int) -> slice:
    """The contiguous part of `count` things that belongs to a rank; the parts differ by one at most."""
    return slice(count * rank // world_size, count * (rank + 1) // world_size)


@dataclass(frozen=True)
class Order:
    """Which images a rank sees at each step.

    Attributes:
        batch_size: of the global batch, over all ranks.
    """

    seed: int
    n_images: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def local_size(self) -> int:
        """Images of a batch that this rank sees."""
        part = share(self.batch_size, self.rank, self.world_size)
        return part.stop - part.start

    def indices(self, step: int) -> npt.NDArray[np.int64]:
        """This rank's images of a step, shape [local_size]."""
        own = share(self.batch_size, self.rank, self.world_size)
        return batch_indices(self.seed, step, self.n_images, self.batch_size)[own]

    def epoch(self, step: int) -> int:
        """Which pass over the images a step belongs to, from 0."""
        return step // steps_per_epoch(self.n_images, self.batch_size)
