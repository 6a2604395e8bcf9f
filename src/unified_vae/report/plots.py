"""Draws the charts and pictures of reports, diagnoses and comparisons with matplotlib's object-oriented API.

Charts are SVG text to be set into a page: their colors are CSS variables, so one drawing serves light and dark pages.
Importing this module imports matplotlib; callers do so when there is something to draw.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from unified_vae.core.errors import escape_name
from unified_vae.core.files import STAGE_PREFIX
from unified_vae.report.read import Row, RunData, get, is_number

# lines differ in color, dash and marker, so that they differ without color
COLORS = ("#0b5fa5", "#b34a00", "#00724f", "#8f3d78", "#5b5b00", "#333333")
DASHES = ("-", "--", "-.", ":", (0, (9, 2, 2, 2)), (0, (5, 1)))
MARKERS = "os^DXP"
INK, QUIET, RULE = "#1a1a1a", "#575757", "#cfcfca"
CSS_COLORS = {
    **{color: f"--s{index}" for index, color in enumerate(COLORS)},
    INK: "--ink",
    QUIET: "--quiet",
    RULE: "--rule",
}

MOST_POINTS = 240  # of a line; more are averaged, which at this size nobody sees
BEGINNING = 0.05  # part of a run whose values may leave the frame ...
SQUASHED = 3.0  # ... where they would make it this many times as high
STEPS = "optimizer steps"
WIDTH, HEIGHT, LEFT, LEGEND_ROW, LEGEND_COLUMNS = 4.4, 2.7, 0.66, 0.2, 6  # inches, and names in a row

WIDEST_IMAGE = 1400  # pixels; twice what a page shows on a screen
MOST_PIXELS = 80_000_000  # of an image that is opened at all
SMALLEST_IMAGE = 64  # pixels that an image is not made smaller than

ACTIVE_NATS = 0.005  # KL of a unit at the threshold, Var[mu] = 0.01, in linear theory: -log(1 - 0.01) / 2
MOST_BARS = 600
SMALLEST = 1e-7  # on a logarithmic axis
NO_CURVE = "no learning curve of a run here"

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A chart for a page.

    Attributes:
        title: what is drawn.
        svg: an element to be set into HTML as it is; every name in it is escaped.
        description: the same in words, with first and last value of each line.
        clipped: whether the first values lie outside the frame.
    """

    title: str
    svg: str
    description: str
    clipped: bool


def run_charts(run: RunData) -> list[Chart]:
    """Draw PSNR, loss, KL, active units, learning rate and speed over the steps, and the path of rate and distortion.

    That path is on the plane of Alemi et al. 2018, arXiv 1711.00464. The distortion is given as PSNR, which is
    comparable whatever was minimized; up and to the left is better.
    """
    train, validation, preflight = run.split("train"), run.split("validation"), run.preflight
    decibels = [(step, -10 * math.log10(mse)) for step, mse in _points(train, "loss.mse") if mse > 0]
    psnr = {"training": decibels, "validation": _points(validation, "psnr")}
    loss = {"training": _points(train, "loss.total"), "validation": _points(validation, "loss.total")}
    kl = {"training": _points(train, "rate.nats"), "validation": _points(validation, "rate.nats")}
    rate, linear_psnr = get(preflight, "predicted", "rate"), get(preflight, "predicted", "psnr")
    path = {"validations": _points(validation, "psnr", "rate.nats"), "linear VAE": [(rate, linear_psnr)]}
    units, lr = {"validation": _points(validation, "active_units")}, {"training": _points(train, "lr")}
    speed = {"training": _points(run.timing_rows, "images_per_second")}
    charts = [
        _chart("PSNR", "dB", psnr, {"PCA": preflight.get("psnr_pca")}),
        _chart("Loss, as minimized", "nats per pixel value", loss),
        _chart("KL", "nats per image", kl, {"linear VAE": rate}),
        _chart("Active units", "latents", units, {"all": run.latents}, zero=True),
        _chart("Learning rate", "of the optimizer", lr, zero=True),
        _chart("Speed", "images per second", speed, zero=True),
        _chart("Rate and distortion", "PSNR, dB", path, x_label="KL, nats per image"),
    ]
    return [chart for chart in charts if chart is not None]


def _points(rows: Sequence[Row], name: str, x: str = "step") -> Points:
    return [(row[x], row[name]) for row in rows if is_number(row.get(x)) and is_number(row.get(name))]


def _chart(
    title: str,
    y_label: str,
    lines: Mapping[str, Points],
    levels: Mapping[str, float | None] | None = None,
    x_label: str = STEPS,
    zero: bool = False,
) -> Chart | None:
    """Draw lines, and levels to compare them with; None where there is nothing to draw.

    Args:
        zero: whether the vertical axis has to show 0.
    """
    points = {label: thin([point for point in line if all(map(is_number, point))]) for label, line in lines.items()}
    points = {label: line for label, line in points.items() if line}
    if not points:
        return None
    shown_levels = {label: level for label, level in (levels or {}).items() if is_number(level)}
    over_steps = x_label == STEPS
    legend_height = LEGEND_ROW * math.ceil((len(points) + len(shown_levels)) / LEGEND_COLUMNS)
    height = HEIGHT + legend_height
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 10}):
        # fixed margins: matplotlib's layout engines take longer than all the rest
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_axes((LEFT / WIDTH, 0.45 / height, 1 - (LEFT + 0.1) / WIDTH, (HEIGHT - 0.75) / height))
        for index, (label, line) in enumerate(points.items()):
            color, dash, marker = (cycle[index % len(cycle)] for cycle in (COLORS, DASHES, MARKERS))
            style: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "label": label}
            every = math.ceil(len(line) / 8)
            axes.plot(*zip(*line, strict=True), **style, linewidth=1.4, markersize=3.5, markevery=every)
        for label, level in shown_levels.items():
            axes.axhline(level, color=INK, linestyle=(0, (2, 2)), linewidth=1, label=label)
        # a wild beginning must not flatten the rest
        reference = [*shown_levels.values(), *([0.0] if zero else [])]
        values, later = [*reference], [*reference]
        for line in points.values():
            start = line[0][0] + BEGINNING * (line[-1][0] - line[0][0])
            values += [y for _, y in line]
            later += [y for x, y in line if x >= start]
        clipped = over_steps and np.ptp(values) > SQUASHED * np.ptp(later) > 0
        low, high = min(later if clipped else values), max(later if clipped else values)
        margin = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
        axes.set_ylim(low - margin, high + margin)
        axes.set_xlim(left=0 if over_steps else None)
        axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(EngFormatter(sep="") if over_steps else "{x:.6g}")
        axes.yaxis.set_major_formatter("{x:.6g}")
        # names above the frame, whose color is the page's
        _label_axes(axes, x_label)
        figure.text(0.02 / WIDTH, 1 - (0.22 + legend_height) / height, y_label, color=QUIET)
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, 1), bbox_transform=figure.transFigure, ncols=LEGEND_COLUMNS,
            frameon=False, borderpad=0.1, borderaxespad=0.1, handlelength=2.4, columnspacing=1.2, labelcolor=INK,
        )  # fmt: skip
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        no_date = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream := io.StringIO(), metadata=no_date)
    ends = (f"{label} from {line[0][1]:.4g} to {line[-1][1]:.4g}" for label, line in points.items())
    return Chart(title, _inline(stream.getvalue()), f"{title} ({y_label}): {'; '.join(ends)}", bool(clipped))


def thin(points: Points) -> Points:
    """Average neighbors so that MOST_POINTS are left; the first and the last point stay as they are."""
    if len(points) <= MOST_POINTS:
        return points
    means = [tuple(part.mean(0)) for part in np.array_split(np.array(points[1:-1], float), MOST_POINTS - 2)]
    return [points[0], *means, points[-1]]


def _label_axes(axes: Axes, x_label: str, y_label: str = "") -> None:
    axes.set_xlabel(x_label, color=QUIET)
    axes.set_ylabel(y_label, color=QUIET)
    axes.tick_params(colors=QUIET, length=3)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)


def _inline(svg: str) -> str:
    """Turn matplotlib's SVG file into an element of a page that takes its colors and its font from the page."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        # only ids of markers and clip paths are referred to; the others would occur once for each chart of a page
        if not re.fullmatch("[mp][0-9a-f]{10}", attributes.get("id", "")):
            attributes.pop("id", None)
        style = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", attributes.pop("style", ""))
        style = re.sub(r" *font-family: [^;]*;", "", style)
        if style := re.sub("|".join(CSS_COLORS), lambda match: f"var({CSS_COLORS[match[0]]})", style):
            attributes["style"] = style
        element.tag, element.attrib, element.tail = element.tag.rpartition("}")[2], attributes, None
    root.attrib = {"viewBox": root.attrib["viewBox"]}
    root[:] = [child for child in root if child.find("style") is None]  # it would hold for the whole page
    return ElementTree.tostring(root, encoding="unicode")


def embed_image(path: Path, max_bytes: int) -> tuple[str, int, int]:
    """Return an image as a data URI with its width and height: as it is where that fits, else as WebP, made smaller.

    Args:
        max_bytes: of the image; as text they are a third more.

    Raises:
        OSError, SyntaxError, ValueError, Image.DecompressionBombError: it is damaged, or too large to be opened.
    """
    with Image.open(path) as file:
        if file.width * file.height > MOST_PIXELS:
            raise ValueError(f"{file.width:,} x {file.height:,} pixels are too many")
        image, kind = file.convert("RGB"), "png"
        fits = file.format == "PNG" and path.stat().st_size <= max_bytes and file.width <= WIDEST_IMAGE
    if fits:
        data = path.read_bytes()
    else:
        kind, factor = "webp", 1.0
        image.thumbnail((WIDEST_IMAGE, WIDEST_IMAGE * 4), Image.Resampling.LANCZOS)
        for quality in itertools.chain((88,), itertools.repeat(65)):
            image.thumbnail((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
            image.save(stream := io.BytesIO(), format="WEBP", quality=quality, method=2)
            data = stream.getvalue()
            if len(data) <= max_bytes or (quality == 65 and max(image.size) <= SMALLEST_IMAGE):
                break
            factor = 1.0 if quality == 88 else max(0.3, 0.95 * math.sqrt(max_bytes / len(data)))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", image.width, image.height


def draw_comparison(path: Path, models: Mapping[str, tuple[Points, tuple[float, float] | None, Points]]) -> None:
    """Draw rate against PSNR and PSNR over steps of several models into a PNG file.

    Args:
        models: label -> the path of its validations as (rate, PSNR), the point that was measured now, and (step, PSNR).
    """
    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (label, (path_of_run, measured, psnr)) in enumerate(models.items()):
        color, dash, marker = (cycle[index % len(cycle)] for cycle in (COLORS, DASHES, MARKERS))
        name = escape_name(label).lstrip("_") or "model"  # matplotlib hides names that begin with `_`
        left.plot(*np.reshape(path_of_run, (-1, 2)).T, color=color, linestyle=dash, linewidth=1, alpha=0.6)
        if measured is not None:
            left.plot(*measured, color=color, marker=marker, markersize=10, linestyle="", label=name)
        if psnr:
            style: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "markersize": 4}
            right.plot(*np.reshape(psnr, (-1, 2)).T, **style, label=name)
    left.set_title("Rate and PSNR: large marks as measured here, lines the way there", fontsize=11)
    right.set_title("PSNR over training", fontsize=11)
    for axes, x_label in ((left, "rate (nats per image)"), (right, "step")):
        _label_axes(axes, x_label, "PSNR of validation images (dB)")
        if axes.get_legend_handles_labels()[1]:
            for text in axes.legend(fontsize=9).get_texts():
                text.set_parse_math(False)  # a name may hold dollars
        else:
            axes.text(0.5, 0.5, NO_CURVE, ha="center", va="center", transform=axes.transAxes)
    _save_png(figure, path)


def draw_diagnosis(path: Path, content: Row, summary: str, detail: float, strips: Mapping[str, Sequence[Any]]) -> None:
    """Draw what a diagnosis measured into a PNG file: units, components, sharpness, the run's path, and images.

    Args:
        content: the diagnosis as it is kept in diagnosis.json.
        summary: a line below the title.
        detail: frequency in cycles per pixel from which on power counts as detail.
        strips: title -> images, uint8 [height, width, 3] each.
    """
    blue, orange, gray, dark, red = "#2b6cb0", "#dd6b20", "#a0aec0", "#4a5568", "#c53030"
    measured = content["figures"]
    figure = Figure(figsize=(15, 8.8), dpi=100)
    title = f"{escape_name(content['subject'])}: {content['cause']}"
    figure.text(0.012, 0.955, title, fontsize=16, fontweight="bold", parse_math=False)
    figure.text(0.012, 0.925, summary, fontsize=11, color=dark, parse_math=False)
    grid = figure.add_gridspec(2, 2, left=0.055, right=0.63, top=0.865, bottom=0.075, wspace=0.27, hspace=0.34)
    units, components, sharpness, path_axes = (figure.add_subplot(grid[i, j]) for i in (0, 1) for j in (0, 1))

    # KL of each unit, in descending order; of thousands of units an even selection
    kl = np.maximum(content["kl_per_unit"], SMALLEST)
    chosen = np.linspace(0, len(kl) - 1, min(len(kl), MOST_BARS)).round().astype(int)
    width = len(kl) / len(chosen) * (0.9 if len(kl) < 60 else 1.0)
    units.bar(1 + chosen, kl[chosen], width=width, color=np.where(kl[chosen] < ACTIVE_NATS, orange, blue))
    units.axhline(ACTIVE_NATS, color=red, linestyle="--", linewidth=1)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    units.text(
        0.02, 1.3 * ACTIVE_NATS, "idle below", color=red, va="bottom", transform=units.get_yaxis_transform(), bbox=box
    )
    units.set(
        title=f"Units: {measured['active_units']} of {measured['latents']} active", xlabel="latent unit, by KL",
        ylabel="KL (nats)", yscale="log", xlim=(0.5, len(kl) + 0.5),
        ylim=(max(min(kl.min(), ACTIVE_NATS) / 3, SMALLEST / 2), max(kl.max(), 10 * ACTIVE_NATS) * 3),
    )  # fmt: skip
    units.locator_params(axis="x", integer=True)

    # variance of each principal component, and the level below which beta lets none through
    variances, latents = np.maximum(content["line"]["eigenvalues"], SMALLEST), measured["latents"]
    low, high = variances.min(initial=1.0), variances.max(initial=SMALLEST)
    last = max(len(variances), latents) * 1.6
    components.plot(np.arange(1, len(variances) + 1), variances, color=blue, marker=".", markersize=4)
    components.axvline(latents, color=gray, linestyle=":")
    side = "right" if latents**2 > 0.8 * last else "left"  # where there is more room
    components.text(
        latents, 0.97, f" {latents} latents ", va="top", ha=side, color=dark, transform=components.get_xaxis_transform()
    )
    if measured["beta"] and measured["sigma"]:
        level = measured["beta"] * measured["sigma"] ** 2
        low, high = min(low, level), max(high, level)
        components.axhline(level, color=red, linestyle="--", linewidth=1)
        words = "not worth its nats below beta x sigma$^2$"
        components.text(0.02, level, words, color=red, va="top", transform=components.get_yaxis_transform())
    components.set(
        title="Principal components of the images", xlabel="component",
        ylabel="variance (squared pixel range, per image)", xscale="log", yscale="log",
        xlim=(0.8, last), ylim=(low / 6, high * 4),
    )  # fmt: skip
    components.xaxis.set_major_formatter("{x:g}")

    # power spectra
    spectrum, frequencies = content["spectrum"], content["spectrum"]["frequencies"]
    for name, color, dash in (("originals", "black", "-"), ("reconstructions", blue, "-"), ("errors", orange, "--")):
        sharpness.plot(frequencies, np.maximum(spectrum[name], 1e-14), color=color, linestyle=dash, label=name)
    sharpness.axvspan(detail, max(0.5, *frequencies), color=gray, alpha=0.18, linewidth=0)
    sharpness.text(detail, 0.03, " detail", color=dark, transform=sharpness.get_xaxis_transform())
    kept = measured["sharpness"]
    sharpness.set(
        title="Sharpness" if kept is None else f"Sharpness: {kept:.0%} of the detail's power is there", yscale="log",
        xlabel="frequency (cycles per pixel)", ylabel="power (squared pixel range)", xlim=(0, max(0.5, *frequencies)),
    )  # fmt: skip
    sharpness.legend(loc="upper right", frameon=False)

    # the path of the run
    path_axes.set(title="Path of the run, from light to dark", xlabel="rate (nats per image)")
    path_axes.set_ylabel("distortion (nats per image)")
    if len(points := np.array(content["path"])):
        shades = np.linspace(0.25, 1.0, len(points)) if len(points) > 1 else np.ones(1)
        path_axes.plot(points[:, 0], points[:, 1], color=gray, linewidth=1, zorder=1)
        path_axes.scatter(points[:, 0], points[:, 1], c=shades, cmap="Blues", vmin=0, vmax=1.1, s=26, zorder=2)
        path_axes.locator_params(axis="x", nbins=6)
        path_axes.margins(0.08)
    else:
        path_axes.text(0.5, 0.5, NO_CURVE, ha="center", va="center", transform=path_axes.transAxes)

    # strips of images below one another, each of rows of four
    columns, left, right, height = 4, 0.665, 0.99, 0.905 / len(strips)
    for index, (caption, images) in enumerate(strips.items()):
        top = 0.905 - index * height
        figure.text(left, top - 0.018, caption, fontsize=11, color=dark)
        grid = figure.add_gridspec(
            -(-len(images) // columns), columns, left=left, right=right, top=top - 0.028, bottom=top - height + 0.012,
            wspace=0.04, hspace=0.04,
        )  # fmt: skip
        for number, image in enumerate(images):
            axes = figure.add_subplot(grid[number // columns, number % columns])
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
    _save_png(figure, path)


def _save_png(figure: Figure, path: Path) -> None:
    """Draw into a file that is there whole or not at all; raises OSError where it cannot be written."""
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the name of a run may be in any script
        figure.savefig(stage, format="png")
    stage.replace(path)
