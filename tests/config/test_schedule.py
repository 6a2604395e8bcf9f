"""Weight schedules are pure functions of progress."""

import pytest

from unified_vae.config.schedule import Constant, Cosine, Cyclical, Linear, describe, factor, warmup_end


@pytest.mark.parametrize(
    "schedule", [Constant(), Linear(warmup=0.3), Cosine(warmup=0.5, start=0.1), Cyclical(cycles=3)]
)
def test_a_schedule_ends_at_the_full_weight_within_its_bounds(schedule):
    values = [factor(schedule, step / 1000) for step in range(1001)]
    assert values[-1] == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in values)
    assert factor(schedule, 2.0) == values[-1]
    after = [value for step, value in enumerate(values) if step / 1000 >= warmup_end(schedule) + 1e-9]
    assert all(value == pytest.approx(1.0) for value in after)
    assert describe(schedule)


def test_linear_and_cosine_meet_their_formulas():
    assert factor(Linear(warmup=0.2), 0.1) == pytest.approx(0.5)
    assert factor(Linear(warmup=0.2, start=0.5), 0.0) == 0.5
    assert factor(Cosine(warmup=0.2), 0.1) == pytest.approx(0.5)
    assert factor(Cosine(warmup=0.2), 0.05) == pytest.approx(0.1464466, abs=1e-6)


def test_cyclical_returns_to_zero_at_each_cycle():
    schedule = Cyclical(cycles=4, ramp=0.5)
    assert [factor(schedule, start) for start in (0.0, 0.25, 0.5, 0.75)] == [0.0] * 4
    assert factor(schedule, 0.0625) == pytest.approx(0.5)
    assert factor(schedule, 0.2) == 1.0
