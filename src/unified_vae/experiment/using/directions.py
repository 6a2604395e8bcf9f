"""Directions in latent space that change one attribute of an image and move the others least, from labelled images.

Two linear fits to the posteriors' means z and the labels, as indicators x of all attributes' values together:

- effects, z on x: what a value adds to z while all other attributes stay. With one attribute it is the difference of
  class means (Larsen et al. 2016, arXiv 1512.09300; White 2016, arXiv 1609.04468); with several, the part of the
  difference that other attributes explain is taken out, which is the conditional manipulation of InterFaceGAN (Shen et
  al. 2020, arXiv 2005.09635) and the pattern rather than the filter of a linear probe (Haufe et al. 2014).
- probes, x on z: a regularised linear classifier (ridge on indicators, which is Fisher's discriminant whitened by the
  covariance of z; Hastie et al. 1995). They say which value an image has, and how well z tells it at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unified_vae.experiment.using.attributes import Attribute, choices

Array = npt.NDArray[np.float64]
RIDGE = 1e-2
"""Of the mean variance of what is regressed on: keeps directions finite where images are fewer than latents."""


@dataclass(frozen=True)
class Score:
    """How well a probe tells an attribute of images that it was not fitted to.

    Attributes:
        accuracy: part of the images whose value it names.
        majority: part that always naming the commonest value would get right.
        images: how many.
    """

    accuracy: float
    majority: float
    images: int


@dataclass(frozen=True)
class Directions:
    """What was learnt.

    Attributes:
        effects: attribute -> [values, latents].
        weights: attribute -> [values, latents], of its probe.
        offsets: attribute -> [values].
        values: attribute -> names of its values.
    """

    effects: Mapping[str, Array]
    weights: Mapping[str, Array]
    offsets: Mapping[str, Array]
    values: Mapping[str, Sequence[str]]

    def told(self, attribute: str, latents: Array) -> npt.NDArray[np.int64]:
        """The value that the probe sees in latents [n, latents]: [n]."""
        scores = latents @ self.weights[attribute].T + self.offsets[attribute]
        return scores.argmax(1)

    def direction(self, attribute: str, value: int) -> Array:
        """[latents]: from the mean of the other values to this one."""
        effects = self.effects[attribute]
        return effects[value] - np.delete(effects, value, axis=0).mean(0)

    def shifts(self, attribute: str, value: int, latents: Array) -> Array:
        """What takes each of the latents [n, latents] to a value at strength 1, [n, latents].

        From the value that the probe sees in it; for images that have the value already, from the mean of the others.
        """
        effects, now = self.effects[attribute], self.told(attribute, latents)
        from_now = effects[value] - effects[now]
        from_now[now == value] = self.direction(attribute, value)
        return from_now

    def named(self, attributes: Sequence[Attribute]) -> dict[str, Array]:
        """The direction of all that may be asked for: word -> [latents]."""
        return {
            word: self.direction(attribute.name, value)
            for attribute in attributes
            if attribute.name in self.effects
            for word, value in choices(attribute).items()
        }


def fit(latents: Array, attributes: Sequence[Attribute]) -> Directions:
    """Learn directions from the means [n, latents] of labelled images.

    Args:
        attributes: of the same images; those that are dead are left out.
    """
    living = [attribute for attribute in attributes if not attribute.is_dead]
    indicators = np.concatenate([_indicators(attribute) for attribute in living], axis=1)
    mean = latents.mean(0)
    centred = latents - mean
    effects = _ridge(indicators, centred)
    weights = _ridge(centred, indicators)
    cuts = np.cumsum([len(attribute.values) for attribute in living])[:-1]
    names = [attribute.name for attribute in living]
    by_name = dict(zip(names, np.split(weights.T, cuts), strict=True))
    shares = {attribute.name: attribute.counts() / attribute.counts().sum() for attribute in living}
    return Directions(
        effects=dict(zip(names, np.split(effects, cuts), strict=True)),
        weights=by_name,
        offsets={name: shares[name] - part @ mean for name, part in by_name.items()},
        values={attribute.name: attribute.values for attribute in living},
    )


def score(directions: Directions, latents: Array, attribute: Attribute) -> Score | None:
    """How well the probe does on other images [n, latents]; None where none of them is labelled."""
    known = attribute.numbers >= 0
    if not known.any():
        return None
    right = directions.told(attribute.name, latents[known]) == attribute.numbers[known]
    return Score(float(right.mean()), float(attribute.counts().max() / known.sum()), int(known.sum()))


def _indicators(attribute: Attribute) -> Array:
    """[n, values]: 1 for the image's value, less each value's share; 0 where it is not known."""
    known = attribute.numbers >= 0
    found = np.zeros((len(attribute.numbers), len(attribute.values)))
    found[known] = np.eye(len(attribute.values))[attribute.numbers[known]]
    found[known] -= found[known].mean(0)
    return found


def _ridge(of: Array, to: Array) -> Array:
    """Coefficients [k, m] that predict `to` [n, m] from `of` [n, k], both centred."""
    moment = of.T @ of / len(of)
    moment[np.diag_indices_from(moment)] += RIDGE * max(np.trace(moment) / len(moment), np.finfo(float).tiny)
    return np.asarray(np.linalg.solve(moment, of.T @ to / len(of)), np.float64)
