from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmp.errors import MmpError
from mmp.pruning.schedules import Cubic, OneShot, Schedule, Stepwise

epochs = st.integers(0, 200)
one_shots = st.builds(OneShot, epochs)
cubics = st.tuples(epochs, epochs).map(lambda pair: Cubic(min(pair), max(pair)))


@st.composite
def stepwise(draw: st.DrawFn) -> Stepwise:
    when = sorted(draw(st.sets(epochs, min_size=1, max_size=8)))
    if draw(st.booleans()):
        return Stepwise(when)
    n = len(when) - 1
    rising = sorted(draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    return Stepwise(when, [*rising, 1.0])


def first_epoch(schedule: Schedule) -> int:
    if isinstance(schedule, Cubic):
        return schedule.start
    return schedule.epochs[0] if isinstance(schedule, Stepwise) else schedule.last_epoch


@given(st.one_of(one_shots, cubics, stepwise()))
def test_every_schedule_rises_from_zero_to_exactly_one(schedule: Schedule) -> None:
    start, last = first_epoch(schedule), schedule.last_epoch
    course = [schedule.fraction(epoch) for epoch in range(last + 5)]
    assert all(0.0 <= fraction <= 1.0 for fraction in course)
    assert course == sorted(course)
    assert course[:start] == [0.0] * start
    assert course[last:] == [1.0] * 5


@given(cubics)
def test_cubic_steps_become_smaller_at_every_epoch(schedule: Cubic) -> None:
    course = [0.0, *(schedule.fraction(epoch) for epoch in range(schedule.start, schedule.end + 1))]
    steps = [after - before for before, after in pairwise(course)]
    assert all(step > 0 for step in steps)
    assert all(later < earlier for earlier, later in pairwise(steps))


def test_one_shot_is_zero_or_one() -> None:
    assert [OneShot(2).fraction(epoch) for epoch in range(4)] == [0.0, 0.0, 1.0, 1.0]


def test_cubic_by_hand() -> None:
    # Zhu and Gupta: 1 - (1 - t)^3 at t = 1/4, 1/2, 3/4, 1.
    course = [Cubic(1, 4).fraction(epoch) for epoch in range(6)]
    assert course == [0.0, 37 / 64, 7 / 8, 63 / 64, 1.0, 1.0]


def test_cubic_of_one_epoch_is_one_shot() -> None:
    assert [Cubic(3, 3).fraction(epoch) for epoch in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]


def test_stepwise_holds_each_fraction_until_the_next_epoch() -> None:
    schedule = Stepwise([1, 3, 4], [0.6, 0.85, 1.0])
    assert [schedule.fraction(epoch) for epoch in range(6)] == [0.0, 0.6, 0.6, 0.85, 1.0, 1.0]
    assert schedule.last_epoch == 4


def test_stepwise_without_fractions_takes_equal_steps() -> None:
    assert [Stepwise([0, 1, 2, 5]).fraction(epoch) for epoch in (0, 1, 2, 5)] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("when", "fractions", "message"),
    [
        ([], None, "epochs is"),
        ([-1, 2], None, "epochs is"),
        ([2, 1], None, "epochs is"),
        ([1, 1], None, "epochs is"),
        ([0, 1], [1.0], "1 entries for 2 epochs"),
        ([0, 1], [0.5, 0.9], "fractions is"),
        ([0, 1, 2], [0.5, 0.4, 1.0], "fractions is"),
        ([0, 1], [-0.5, 1.0], "fractions is"),
        ([0, 1], [0.5, 1.5], "fractions is"),
    ],
)
def test_stepwise_refuses_lists_that_do_not_rise_to_one(
    when: list[int], fractions: list[float] | None, message: str
) -> None:
    with pytest.raises(MmpError, match=message):
        Stepwise(when, fractions)


def test_negative_or_reversed_epochs_are_refused() -> None:
    with pytest.raises(MmpError, match="epoch is -1"):
        OneShot(-1)
    for start, end in ((-1, 3), (4, 3)):
        with pytest.raises(MmpError, match=f"start {start} and end {end}"):
            Cubic(start, end)
