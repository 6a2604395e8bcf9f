"""Directions in latent space that change one attribute of an image and move the others least, from labelled images.

Three linear fits to the posteriors' means z and the labels, as indicators x of all attributes' values together:

- effects, z on x: what a value adds to z while all other attributes stay. With one attribute it is the difference of
  class means (Larsen et al. 2016, arXiv 1512.09300; White 2016, arXiv 1609.04468); with several, the part of the
  difference that other attributes explain is taken out, which is the conditional manipulation of InterFaceGAN (Shen et
  al. 2020, arXiv 2005.09635) and the pattern rather than the filter of a linear probe (Haufe et al. 2014).
- probes, x on z: a regularised linear classifier (ridge on indicators, which is Fisher's discriminant whitened by the
  covariance of z; Hastie et al. 1995). They say which value an image has, and how well z tells it at all.
- effects in context, z on x and on products of one attribute's indicators with those of all others: glasses on a face
  that looks left are elsewhere. For an image to edit, the probes say what its others are.

Moving along the probes themselves, whitened and with the other probes held still, was measured as well and is worse
(benchmarks/attribute_edit.py): what the probes see and what the decoder draws are not the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from unified_vae.experiment.using.attributes import Attribute, choices

Array = npt.NDArray[np.float64]
RIDGE = 1e-2
"""Of the mean variance of what is regressed on: keeps directions finite where images are fewer than latents."""
CONTEXT_RIDGE = 3e-2
"""Likewise, for effects in context, which are many."""
IMAGES_FOR_A_PRODUCT = 4
MOST_PRODUCTS = 2000
ONE_OF_20 = 1.645
"""Standard deviations that a normal variable exceeds once in 20 times."""


@dataclass(frozen=True)
class Score:
    """How well a probe tells an attribute of images that it was not fitted to.

    Attributes:
        accuracy: part of the images whose value it names.
        majority: part that always naming the commonest value would get right.
        images: how many.
        told_apart: for each value, the part of pairs of an image that has it and one that has not in which the probe
            ranks the first above (the area under the ROC curve; guessing: 0.5); None where there are no such pairs.
        having: images of each value.
    """

    accuracy: float
    majority: float
    images: int
    told_apart: Sequence[float | None]
    having: Sequence[int]

    def may_be_chance(self, value: int) -> bool:
        """Whether guessing ranks so many pairs right in more than one of 20 tries (Mann & Whitney 1947)."""
        found, with_it = self.told_apart[value], self.having[value]
        if found is None:
            return False
        without = self.images - with_it
        return found < 0.5 + ONE_OF_20 * math.sqrt((self.images + 1) / (12 * with_it * without))


@dataclass(frozen=True)
class Context:
    """What the effects of one attribute are among the others.

    Attributes:
        effects: [values, latents].
        products: [values * others, latents].
        spread: [others], by which their indicators are divided.
        weights: [others, latents], of the probes that say what they are.
    """

    effects: Array
    products: Array
    spread: Array
    weights: Array


class Directions:
    """What is learnt from the means [n, latents] of labelled images.

    Attributes:
        effects: attribute -> [values, latents].
        weights: attribute -> [values, latents], of its probe.
        values: attribute -> names of its values.
    """

    def __init__(self, latents: Array, attributes: Sequence[Attribute]) -> None:
        """Attributes are of the same images; those that are dead are left out."""
        living = [attribute for attribute in attributes if not attribute.is_dead]
        self.values: Mapping[str, Sequence[str]] = {attribute.name: attribute.values for attribute in living}
        self._mean = latents.mean(0)
        self._latents = latents - self._mean
        self._indicators = {attribute.name: _indicators(attribute) for attribute in living}
        self._shares = {attribute.name: attribute.counts() / attribute.counts().sum() for attribute in living}
        together = np.concatenate(list(self._indicators.values()), axis=1)
        cuts = np.cumsum([part.shape[1] for part in self._indicators.values()])[:-1]
        effects, weights = _ridge(together, self._latents), _ridge(self._latents, together)
        self.effects: Mapping[str, Array] = dict(zip(self._indicators, np.split(effects, cuts), strict=True))
        self.weights: Mapping[str, Array] = dict(zip(self._indicators, np.split(weights.T, cuts), strict=True))
        self._in_context = lru_cache(maxsize=1)(self._fit_context)

    def told(self, attribute: str, latents: Array) -> npt.NDArray[np.int64]:
        """The value that the probe sees in latents [n, latents]: [n]."""
        return self.seen(attribute, latents).argmax(1)

    def seen(self, attribute: str, latents: Array) -> Array:
        """How much the probe sees of each value in latents [n, latents]: [n, values]."""
        return (latents - self._mean) @ self.weights[attribute].T + self._shares[attribute]

    def direction(self, attribute: str, value: int) -> Array:
        """[latents]: from the mean of the other values to this one, on average over what else is in an image."""
        return _against_others(len(self.values[attribute]), value) @ self.effects[attribute]

    def shifts(self, attribute: str, value: int, latents: Array) -> Array:
        """What takes each of the latents [n, latents] to a value at strength 1, [n, latents].

        From the value that the probe sees in it; for images that have the value already, from the mean of the others.
        """
        now, count = self.told(attribute, latents), len(self.values[attribute])
        change = np.eye(count)[value] - np.eye(count)[now]
        change[now == value] = _against_others(count, value)
        context = self._in_context(attribute)
        if context is None:
            return change @ self.effects[attribute]
        own = (np.eye(count)[now] - self._shares[attribute]) @ self.effects[attribute]
        others = (latents - self._mean - own) @ context.weights.T / context.spread
        return change @ context.effects + _products(change, others) @ context.products

    def named(self, attributes: Sequence[Attribute]) -> dict[str, Array]:
        """The direction of all that may be asked for: word -> [latents]."""
        return {
            word: self.direction(attribute.name, value)
            for attribute in attributes
            if attribute.name in self.effects
            for word, value in choices(attribute).items()
        }

    def _fit_context(self, attribute: str) -> Context | None:
        """None where there is no other attribute, or the images are too few for so many products."""
        names = [name for name in self._indicators if name != attribute]
        own = self._indicators[attribute]
        count = own.shape[1] * sum(self._indicators[name].shape[1] for name in names)
        if not 0 < count <= min(MOST_PRODUCTS, len(own) // IMAGES_FOR_A_PRODUCT):
            return None
        others = np.concatenate([self._indicators[name] for name in names], axis=1)
        spread = np.maximum(others.std(0), 1e-9)
        features = np.concatenate([own, others, _products(own, others / spread)], axis=1)
        found = _ridge(features, self._latents, CONTEXT_RIDGE)
        weights = np.concatenate([self.weights[name] for name in names])
        return Context(found[: own.shape[1]], found[own.shape[1] + others.shape[1] :], spread, weights)


def _against_others(count: int, value: int) -> Array:
    """[values]: this value, and the mean of the others with the opposite sign."""
    found = np.full(count, -1.0 / (count - 1))
    found[value] = 1.0
    return found


def _products(own: Array, others: Array) -> Array:
    """[n, values * others]: each of one with each of the others."""
    return (own[:, :, None] * others[:, None, :]).reshape(len(own), -1)


def score(directions: Directions, latents: Array, attribute: Attribute) -> Score | None:
    """How well the probe does on other images [n, latents]; None where none of them is labelled."""
    known = attribute.numbers >= 0
    if not known.any():
        return None
    seen, truth = directions.seen(attribute.name, latents[known]), attribute.numbers[known]
    having = attribute.counts()
    return Score(
        accuracy=float((seen.argmax(1) == truth).mean()),
        majority=float(having.max() / len(truth)),
        images=len(truth),
        told_apart=[_told_apart(seen[:, value], truth == value) for value in range(len(having))],
        having=having.tolist(),
    )


def _told_apart(seen: Array, having: npt.NDArray[np.bool_]) -> float | None:
    """Part of the pairs with the one that has it above; a tie is half of one."""
    without, those = np.sort(seen[~having]), seen[having]
    if not len(without) or not len(those):
        return None
    below = np.searchsorted(without, those, "left") + np.searchsorted(without, those, "right")
    return float(below.mean() / (2 * len(without)))


def _indicators(attribute: Attribute) -> Array:
    """[n, values]: 1 for the image's value, less each value's share; 0 where it is not known."""
    known = attribute.numbers >= 0
    found = np.zeros((len(attribute.numbers), len(attribute.values)))
    found[known] = np.eye(len(attribute.values))[attribute.numbers[known]]
    found[known] -= found[known].mean(0)
    return found


def _ridge(of: Array, to: Array, ridge: float = RIDGE) -> Array:
    """Coefficients [k, m] that predict `to` [n, m] from `of` [n, k], both centred.

    The moment that is solved is the smaller one, [k, k] or [n, n]: (X'X + c)^-1 X' = X' (XX' + c)^-1 (Saunders et al.
    1998). Latents of a map may be many thousands, and images few.
    """
    count, width = of.shape
    variance = float(np.einsum("ij,ij->", of, of)) / (count * width)
    penalty = count * ridge * max(variance, np.finfo(float).tiny)
    moment = of.T @ of if width <= count else of @ of.T
    moment[np.diag_indices_from(moment)] += penalty
    found = np.linalg.solve(moment, of.T @ to) if width <= count else of.T @ np.linalg.solve(moment, to)
    return np.asarray(found, np.float64)
