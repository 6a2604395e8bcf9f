"""Charts: what is drawn is what was given, inside the frame, and can be told apart without colour."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unified_vae.experiment.report.chart import (
    DASHES,
    HEIGHT,
    LABEL_HEIGHT,
    MARKERS,
    WIDTH,
    Level,
    Line,
    chart,
    padded,
    parted,
    thinned,
)
from unified_vae.experiment.report.html import Html, escaped, tag
from unified_vae.experiment.report.ticks import duration, round_steps, short

numbers = st.floats(-1e12, 1e12, allow_nan=False)
anything = st.floats(allow_nan=True, allow_infinity=True)


@example(courses=[[(0.0, 0.0), (0.0, 5e-324)]], levels=[])
@given(st.lists(st.lists(st.tuples(anything, anything), max_size=6), max_size=4), st.lists(anything, max_size=2))
def test_any_numbers_give_a_chart_or_none(courses, levels):
    lines = [Line(f"line {place}", points) for place, points in enumerate(courses)]
    text = chart("T", "x", "y", lines, [Level("level", value) for value in levels])
    some = any(abs(x) <= 1e100 and abs(y) <= 1e100 for points in courses for x, y in points)
    assert (text is not None) == some
    assert text is None or not re.search(r"nan|inf\b", text)


@given(st.lists(numbers, min_size=2, max_size=30), st.floats(1e-6, 1e6))
def test_markers_and_words_stay_inside(values, apart):
    text = chart(
        "T", "x", "y", [Line("validation", [(apart * place, value) for place, value in enumerate(values)])], x_from=0
    )
    assert text is not None
    for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", text):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT
    for x, y in re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)"', text):
        assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT


def test_lines_differ_in_dash_and_marker_and_bear_their_names():
    lines = [Line(f"run {place}", [(0, place), (1, place + 0.5)]) for place in range(6)]
    text = chart("T", "steps", "dB", lines, x_from=0)
    assert text is not None
    assert set(re.findall(r'stroke-dasharray="([^"]+)"', text)) == set(DASHES) - {""}
    assert set(re.findall(r'<path d="([^"]+)" class="mark', text)) == set(MARKERS)
    assert [name in text for name in (">run 0<", ">run 5<", ">steps<", ">dB<")] == [True] * 4


def test_a_chart_tells_its_ends_in_words():
    text = chart("PSNR", "steps", "dB", [Line("validation", [(0, 10.5), (9, 23.25)])])
    assert text is not None and 'aria-label="PSNR (dB): validation from 10.5 to 23.25"' in text


def test_a_wild_beginning_does_not_flatten_the_rest():
    course = [(step, 1e6 if step < 3 else 1 + 1 / step) for step in range(100)]
    text = chart("Loss", "steps", "nats", [Line("training", course)], x_from=0)
    assert text is not None and "The first values lie outside the frame." in text
    ticks = [float(found) for found in re.findall(r'text-anchor="end">([\d.]+)<', text)]
    assert max(ticks) < 2


def test_short_and_long_lines_share_a_frame_that_holds_both_ends():
    text = chart(
        "T", "hours", "dB", [Line("long", [(1, 20), (100, 23)]), Line("short", [(0.1, 50), (0.2, 60)])], x_from=0
    )
    assert text is not None and "outside" not in text


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=2000))
def test_thinning_keeps_ends_mean_and_size(points):
    few = thinned(points)
    assert len(few) <= 240 and few[0] == points[0] and few[-1] == points[-1]
    assert min(points)[0] - 1 <= min(few)[0] and max(few)[0] <= max(points)[0] + 1


@given(st.lists(st.floats(0, 100), max_size=7))
def test_names_never_lie_upon_one_another(heights):
    moved = sorted(parted(heights, 0, 100))
    gaps = [after - before for before, after in itertools.pairwise(moved)]
    assert all(gap >= LABEL_HEIGHT - 1e-6 for gap in gaps)
    assert all(-1e-6 <= height <= 100 + 1e-6 for height in moved)


@given(numbers, st.floats(1e-9, 1e9))
def test_ticks_are_round_and_inside(low, span):
    low, high = padded(low, low + span, 0.0)  # as a chart does it: never a range that floats cannot divide
    span = high - low
    ticks = round_steps(low, high, 5)
    assert len(ticks) <= 7 and all(low - span / 100 <= tick <= high + span / 100 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(12_000, "12k"), (2_500_000, "2.5M"), (0.0005, "0.0005"), (0, "0"), (-2, "-2")]
)
def test_ticks_in_few_letters(value, text):
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(48.4, "48 s"), (720, "12 min"), (11_100, "3 h 05 min"), (0, "0 s")])
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


@given(st.text())
def test_text_is_read_as_it_was_written(text):
    import html

    assert "<" not in escaped(text) and '"' not in escaped(text)
    if all(letter.isprintable() for letter in text):
        assert html.unescape(escaped(text)) == text


def test_only_markup_made_here_is_markup():
    assert tag("p", "<b>", Html("<i></i>"), 3, None) == "<p>&lt;b&gt;<i></i>3</p>"
    assert tag("img", alt='"><script>') == '<img alt="&quot;&gt;&lt;script&gt;">'
