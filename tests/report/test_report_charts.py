"""Charts: what is drawn is what was measured, inside the frame, and can be told apart without color."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.report.run_folders import training, validation, whole_run, write_rows
from unified_vae.report import plots
from unified_vae.report.plots import COLORS, MOST_POINTS, draw_comparison, draw_diagnosis, run_charts, thin
from unified_vae.report.read import read_run

anything = st.floats(allow_nan=True, allow_infinity=True)
numbers = st.floats(-1e12, 1e12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    return read_run(whole_run(tmp_path_factory.mktemp("charts") / "run"))


@pytest.fixture(scope="module")
def charts(run):
    """Its charts."""
    return run_charts(run)


@settings(max_examples=5, deadline=None)
@example([[(0.0, 0.0), (0.0, 5e-324)]], None)
@example([[(1.0, 1e100), (2.0, -1e100)]], 1e308)
@given(st.lists(st.lists(st.tuples(anything, anything), max_size=6), max_size=4), st.none() | anything)
def test_any_numbers_give_a_chart_or_none(courses, level):
    lines = {f"line {index}": points for index, points in enumerate(courses)}
    chart = plots._chart("T", "dB", lines, {"level": level})
    drawable = any(abs(x) <= 1e100 and abs(y) <= 1e100 for points in courses for x, y in points)
    assert (chart is not None) == drawable
    if chart is not None:
        assert not re.search(r"\b(nan|inf)\b", chart.svg)
        ElementTree.fromstring(chart.svg)  # well-formed


def test_lines_differ_in_color_dash_and_marker():
    lines = {f"run {index}": [(0.0, index), (1.0, index + 0.5)] for index in range(6)}
    chart = plots._chart("T", "dB", lines)
    assert chart is not None and all(f">{name}<" in chart.svg for name in (*lines, plots.STEPS, "dB"))
    lines = [path for path in ElementTree.fromstring(chart.svg).iter("path") if path.get("clip-path")]
    styles = [path.get("style", "") for path in lines if "--rule" not in path.get("style", "")]
    assert len({re.findall(r"stroke: (var\(--s\d\))", style)[0] for style in styles}) == len(COLORS) == 6
    assert len({re.findall(r"stroke-dasharray: ([\d., ]+)|$", style)[0] for style in styles}) == 6
    assert len(set(re.findall(r'<path id="m\w+" d="([^"]+)"', chart.svg))) >= 6


def test_a_chart_has_the_points_of_the_run_and_says_so(charts):
    titles = ["PSNR", "Loss, as minimized", "KL", "Active units", "Learning rate", "Speed", "Rate and distortion"]
    assert [chart.title for chart in charts] == titles
    assert "validation from 20.28 to 20.78" in charts[0].description
    paths = [path for path in ElementTree.fromstring(charts[0].svg).iter("path") if path.get("clip-path")]
    (line,) = (path.get("d", "") for path in paths if "--s1" in path.get("style", ""))
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", line), float)
    psnr = [20.28125, 20.78125, 21.28125, 20.78125]  # as the validations say
    assert np.corrcoef(points[:, 1], psnr)[0, 1] == pytest.approx(-1, abs=1e-6)
    assert np.diff(points[:, 0]).std() < 1e-3 < points[0, 0]


def test_colors_come_from_the_page(charts):
    for chart in charts:
        assert not re.search(r"(?:fill|stroke): #", chart.svg) and "<style" not in chart.svg


def test_a_wild_beginning_does_not_flatten_the_rest(tmp_path):
    rows = [{**training(step), "loss.total": 1e6 if step < 3 else 1 + 1 / step} for step in range(1, 100)]
    write_rows(whole_run(tmp_path / "run") / "metrics.jsonl", [*rows, validation(99, 20.0)])
    charts = {chart.title: chart for chart in run_charts(read_run(tmp_path / "run"))}
    loss = charts["Loss, as minimized"]
    assert loss.clipped and not charts["PSNR"].clipped
    ticks = [float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r"anchor: end[^>]*>([^<]+)<", loss.svg)]
    assert ticks and max(ticks) < 10


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=700))
def test_thinning_keeps_ends_and_range(points):
    few = thin(points)
    assert len(few) <= MOST_POINTS and few[0] == points[0] and few[-1] == points[-1]
    assert min(points)[0] - 1 <= min(few)[0] and max(few)[0] <= max(points)[0] + 1


def test_the_same_numbers_give_the_same_bytes(run, charts):
    assert run_charts(run) == charts


def test_no_id_occurs_twice_on_a_page(charts):
    ids = [each for chart in charts for each in re.findall(r' id="(\w+)"', chart.svg)]
    assert len(ids) == len(set(ids)) > 10


def test_predictions_of_other_shapes_are_left_out(tmp_path):
    preflight = {"latents": "x", "predicted": 3, "psnr_pca": [1]}
    odd = run_charts(read_run(whole_run(tmp_path / "run", preflight=preflight, data=[], steps_per_epoch="x")))
    assert len(odd) == 7 and not any("PCA<" in chart.svg or "linear VAE<" in chart.svg for chart in odd)


def test_models_of_any_name_are_compared_in_a_picture(tmp_path):
    courses = [(1.0, 20.0), (2.0, 21.0)], (2.0, 21.5), [(10, 20.0), (20, 21.0)]
    names = ("$x^2$ _a_", "_hidden", "名前", "\x1b[31m", "$\\broken$")
    draw_comparison(tmp_path / "a.png", {**dict.fromkeys(names, courses), "b": ([], None, [])})
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1200, 500) and np.asarray(image.convert("L")).std() > 5


def test_a_diagnosis_is_drawn_whatever_it_lacks(tmp_path):
    spectrum = {name: [0.1, 0.2] for name in ("frequencies", "originals", "reconstructions", "errors")}
    figures = {"active_units": 0, "latents": 90, "beta": None, "sigma": None, "sharpness": None}
    content = {"subject": "$run$", "cause": "healthy", "kl_per_unit": [0.0] * 90, "path": [], "spectrum": spectrum}
    content |= {"figures": figures, "line": {"eigenvalues": []}}
    draw_diagnosis(tmp_path / "d.png", content, "nothing", 0.125, {"images": [np.zeros((8, 8, 3), np.uint8)] * 2})
    with Image.open(tmp_path / "d.png") as image:
        assert image.size == (1500, 880)
