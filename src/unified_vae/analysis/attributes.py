"""Attributes of images by name, and the directions in latent space that change one and move the others least.

Attributes come from class folders, the built-in set, or a table such as CelebA's. Directions are three linear fits to
the posteriors' means z and the labels, as indicators x of all attributes' values together:

- effects, z on x: what a value adds to z while all other attributes stay. With one attribute it is the difference of
  class means (Larsen et al. 2016, arXiv 1512.09300; White 2016, arXiv 1609.04468); with several, the part of the
  difference that other attributes explain is taken out, which is the conditional manipulation of InterFaceGAN (Shen et
  al. 2020, arXiv 2005.09635) and the pattern rather than the filter of a linear probe (Haufe et al. 2014).
- probes, x on z: a regularized linear classifier (ridge on indicators, which is Fisher's discriminant whitened by the
  covariance of z; Hastie et al. 1995). They say which value an image has, and how well z separates it at all.
- effects in context, z on x and on products of one attribute's indicators with those of all others: glasses on a face
  that looks left are elsewhere. For an image to edit, the probes say what its others are.

Moving along the probes themselves, whitened and with the other probes held still, was measured as well and is worse
(benchmarks/attribute_edit.py): what the probes see and what the decoder draws are not the same.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from unified_vae.core.errors import ConfigError, DataError, escape_name, nearest

Array = npt.NDArray[np.float64]
UNKNOWN = -1
TABLES = (".csv", ".tsv", ".txt")
MIN_IMAGES = 10
"""Images with and without an attribute that a direction needs."""
RIDGE = 1e-2
"""Of the mean variance of what is regressed on: keeps directions finite where images are fewer than latents."""
CONTEXT_RIDGE = 3e-2
"""Likewise, for effects in context, which are many."""
IMAGES_PER_PRODUCT = 4
MAX_PRODUCTS = 2000
ONE_OF_20 = 1.645
"""Standard deviations that a normal variable exceeds once in 20 times."""
_NO, _YES = {"-1", "0", "false", "no"}, {"1", "true", "yes"}


# --- labels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attribute:
    """One thing that images differ in, e.g. glasses.

    Attributes:
        values: names of what it may be, e.g. none, round, square.
        numbers: value of each image, UNKNOWN where it is not known; int64 [n].
    """

    name: str
    values: Sequence[str]
    numbers: npt.NDArray[np.int64]

    def counts(self) -> npt.NDArray[np.int64]:
        """Images of each value."""
        return np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.values))

    @property
    def is_dead(self) -> bool:
        """Whether fewer than two values have enough images to tell them apart."""
        return int((self.counts() >= MIN_IMAGES).sum()) < 2

    def choices(self) -> dict[str, int]:
        """What a user may ask for -> value: `freckles` where it is there or not, else `glasses=round`, ..."""
        words = [value.lower() for value in self.values]
        if len(words) == 2 and any(word in _YES for word in words) and any(word in _NO for word in words):
            return {self.name: next(number for number, word in enumerate(words) if word in _YES)}
        return {f"{self.name}={value}": number for number, value in enumerate(self.values)}


def is_table(labels: str) -> bool:
    """Whether the text names a table rather than a data source."""
    return labels.lower().endswith(TABLES)


def read_table(path: Path, ids: Sequence[str]) -> list[Attribute]:
    """The attributes of a table, for the images with these names.

    The first column names the images; the others hold -1 or 0 and 1. The first line names the columns. CelebA's own
    file has the number of images above it, and spaces between; both are understood. Where the table's names lack the
    folders of the images', the file names alone are compared.

    Raises:
        DataError: it is no such table, or names none of the images.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as problem:
        raise DataError(f"{path} cannot be read: {problem.strerror}") from None
    except ValueError:
        raise DataError(f"{path} is no table of text: --labels takes a .csv, .tsv or .txt, or a data source") from None
    if lines and lines[0].strip().isdigit():  # CelebA's own file
        lines = lines[1:]
    separator = next((mark for mark in (",", "\t", ";") if lines and mark in lines[0]), None)
    if separator is None:
        cells = [line.split() for line in lines]
    else:
        cells = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
    if len(cells) < 2 or len(cells[1]) < 2:
        raise DataError(f"{path} is no table: a line with the attributes' names, then a line per image")
    width = len(cells[1])
    if len(cells[0]) not in (width - 1, width):
        raise DataError(f"{path}: its first line has {len(cells[0])} names and the second {width} entries")
    for number, row in enumerate(cells[1:], start=2):
        if len(row) != width:
            raise DataError(f"{path}: row {number} has {len(row)} entries, and the others have {width}")
    rows = {row[0]: row[1:] for row in cells[1:]}

    # Which image each row is of: by whole names, else by file names that occur once.
    images = {name: number for number, name in enumerate(ids) if name in rows}
    if not images:
        files = [PurePosixPath(name).name for name in ids]
        times = Counter(files)
        images = {file: number for number, file in enumerate(files) if file in rows and times[file] == 1}
    if not images:
        raise DataError(
            f"{path} names none of the {len(ids):,} images (it names e.g. {escape_name(next(iter(rows)))}, and an "
            f"image is e.g. {escape_name(ids[0])}): its first column holds the names of the files"
        )
    attributes = []
    for column, head in enumerate(cells[0][-(width - 1) :]):
        numbers = np.full(len(ids), UNKNOWN, np.int64)
        for name, image in images.items():
            word = rows[name][column].lower().removesuffix(".0")
            if word and word not in _YES | _NO:
                cell = rows[name][column]
                raise DataError(f"{path}: the column {head!r} holds {cell!r}; attributes are -1 or 0, and 1")
            numbers[image] = (1 if word in _YES else 0) if word else UNKNOWN
        attributes.append(Attribute(head, ["no", "yes"], numbers))
    return attributes


def choose(attributes: Sequence[Attribute], word: str) -> tuple[Attribute, int]:
    """The attribute and the value that a user's word names: `freckles`, `glasses=round`, or a value's own name.

    Raises:
        ConfigError: there is none, or all images agree in it.
    """
    known = {choice: (each, value) for each in attributes for choice, value in each.choices().items()}
    named = [known[word]] if word in known else []
    if not named:  # `cats` of the class folders, where one attribute alone has such a value
        named = [entry for choice, entry in known.items() if choice == f"{entry[0].name}={word}"]
    if len(named) != 1:
        raise ConfigError(f"there is no attribute {word!r}: {nearest(word, known)}")
    attribute, value = named[0]
    counts = attribute.counts()
    others = int(counts.sum() - counts[value])
    if counts[value] < MIN_IMAGES or others < MIN_IMAGES:
        raise ConfigError(
            f"{word} cannot be learned: {int(counts[value]):,} of the labeled images have it, {others:,} do not, and "
            f"{MIN_IMAGES} of each are needed"
        )
    return attribute, value


# --- directions ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """How well a probe predicts an attribute of images that it was not fitted to.

    Attributes:
        accuracy: part of the images whose value it names.
        majority: part that always naming the commonest value would get right.
        images: how many.
        auc: for each value, the part of pairs of an image that has it and one that has not in which the probe ranks
            the first above (the area under the ROC curve; guessing: 0.5); None where there are no such pairs.
        counts: images of each value.
    """

    accuracy: float
    majority: float
    images: int
    auc: Sequence[float | None]
    counts: Sequence[int]

    def may_be_chance(self, value: int) -> bool:
        """Whether guessing ranks so many pairs right in more than one of 20 tries (Mann & Whitney 1947)."""
        auc, count = self.auc[value], self.counts[value]
        if auc is None:
            return False
        return auc < 0.5 + ONE_OF_20 * math.sqrt((self.images + 1) / (12 * count * (self.images - count)))


class Directions:
    """Linear fits to the means [n, latents] of labeled images.

    Attributes:
        values: attribute -> names of its values.
        effects: attribute -> [values, latents].
        weights: attribute -> its probe, [values, latents].
    """

    def __init__(self, latents: Array, attributes: Sequence[Attribute]) -> None:
        """Attributes are of the same images; those that are dead are left out."""
        alive = [attribute for attribute in attributes if not attribute.is_dead]
        self.values: Mapping[str, Sequence[str]] = {attribute.name: attribute.values for attribute in alive}
        self._mean = latents.mean(0)
        self._latents = latents - self._mean
        self._indicators = dict[str, Array]()  # 1 for the image's value, less each value's share; 0 where not known
        for attribute in alive:
            known = attribute.numbers >= 0
            one_hot = np.zeros((len(latents), len(attribute.values)))
            one_hot[known] = np.eye(len(attribute.values))[attribute.numbers[known]]
            one_hot[known] -= one_hot[known].mean(0)
            self._indicators[attribute.name] = one_hot
        self._shares = {attribute.name: attribute.counts() / attribute.counts().sum() for attribute in alive}
        together = np.concatenate(list(self._indicators.values()), axis=1)
        cuts = np.cumsum([part.shape[1] for part in self._indicators.values()])[:-1]
        effects, weights = _ridge(together, self._latents), _ridge(self._latents, together)
        self.effects: Mapping[str, Array] = dict(zip(self._indicators, np.split(effects, cuts), strict=True))
        self.weights: Mapping[str, Array] = dict(zip(self._indicators, np.split(weights.T, cuts), strict=True))
        self._context = lru_cache(maxsize=1)(self._fit_context)

    def predict(self, attribute: str, latents: Array) -> Array:
        """The probe's output for each value in latents [n, latents]: [n, values]; the highest is its answer."""
        return (latents - self._mean) @ self.weights[attribute].T + self._shares[attribute]

    def direction(self, attribute: str, value: int) -> Array:
        """[latents]: from the mean of the other values to this one, on average over what else is in an image."""
        return _against_others(len(self.values[attribute]), value) @ self.effects[attribute]

    def shifts(self, attribute: str, value: int, latents: Array) -> Array:
        """What takes each of the latents [n, latents] to a value at strength 1, [n, latents].

        From the value that the probe predicts; for images that have the value already, from the mean of the others.
        """
        now, count = self.predict(attribute, latents).argmax(1), len(self.values[attribute])
        change = np.eye(count)[value] - np.eye(count)[now]
        change[now == value] = _against_others(count, value)
        context = self._context(attribute)
        if context is None:
            return change @ self.effects[attribute]
        effects, products, weights, spread = context
        contribution = (np.eye(count)[now] - self._shares[attribute]) @ self.effects[attribute]
        others = (latents - self._mean - contribution) @ weights.T / spread
        return change @ effects + _products(change, others) @ products

    def _fit_context(self, attribute: str) -> tuple[Array, Array, Array, Array] | None:
        """What the effects of one attribute are among the others.

        Returns:
            effects [values, latents], effects of products [values * others, latents], weights of the others' probes
            [others, latents], and the spread of their indicators, [others]. None where there is no other attribute,
            or the images are too few for so many products.
        """
        names = [name for name in self._indicators if name != attribute]
        indicators = self._indicators[attribute]
        count = indicators.shape[1] * sum(self._indicators[name].shape[1] for name in names)
        if not 0 < count <= min(MAX_PRODUCTS, len(indicators) // IMAGES_PER_PRODUCT):
            return None
        others = np.concatenate([self._indicators[name] for name in names], axis=1)
        spread = np.maximum(others.std(0), 1e-9)
        features = np.concatenate([indicators, others, _products(indicators, others / spread)], axis=1)
        fit = _ridge(features, self._latents, CONTEXT_RIDGE)
        weights = np.concatenate([self.weights[name] for name in names])
        return fit[: indicators.shape[1]], fit[indicators.shape[1] + others.shape[1] :], weights, spread

    def score(self, latents: Array, attribute: Attribute) -> Score | None:
        """How well the probe does on other images [n, latents]; None where none of them is labeled."""
        known = attribute.numbers >= 0
        if not known.any():
            return None
        outputs, truth = self.predict(attribute.name, latents[known]), attribute.numbers[known]
        counts = attribute.counts()
        return Score(
            accuracy=float((outputs.argmax(1) == truth).mean()),
            majority=float(counts.max() / len(truth)),
            images=len(truth),
            auc=[roc_auc(outputs[:, value], truth == value) for value in range(len(counts))],
            counts=counts.tolist(),
        )


def _against_others(count: int, value: int) -> Array:
    """[values]: this value, and the mean of the others with the opposite sign."""
    weights = np.full(count, -1.0 / (count - 1))
    weights[value] = 1.0
    return weights


def _products(a: Array, b: Array) -> Array:
    """[n, values * others]: each column of `a` with each of `b`."""
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def roc_auc(outputs: Array, having: npt.NDArray[np.bool_]) -> float | None:
    """Part of the pairs with the one that has it above; a tie is half of one. None without pairs."""
    without, those = np.sort(outputs[~having]), outputs[having]
    if not len(without) or not len(those):
        return None
    below = np.searchsorted(without, those, "left") + np.searchsorted(without, those, "right")
    return float(below.mean() / (2 * len(without)))


def _ridge(x: Array, y: Array, ridge: float = RIDGE) -> Array:
    """Coefficients [k, m] that predict y [n, m] from x [n, k], both centered.

    The moment that is solved is the smaller one, [k, k] or [n, n]: (X'X + c)^-1 X' = X' (XX' + c)^-1 (Saunders et al.
    1998). Latents of a map may be many thousands, and images few.
    """
    count, width = x.shape
    variance = float(np.einsum("ij,ij->", x, x)) / (count * width)
    penalty = count * ridge * max(variance, np.finfo(float).tiny)
    moment = x.T @ x if width <= count else x @ x.T
    moment[np.diag_indices_from(moment)] += penalty
    fit = np.linalg.solve(moment, x.T @ y) if width <= count else x.T @ np.linalg.solve(moment, y)
    return np.asarray(fit, np.float64)
