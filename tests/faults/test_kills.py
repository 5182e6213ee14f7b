"""A kill at every named point, and resuming anywhere: a few of what the campaign makes hundreds of."""

import pytest

from tests.faults.scenarios import HORIZON, POINTS, Moment, Place, kill, resume_anywhere

AT = {
    "before_save": "@9",
    "during_write": "@12",
    "before_commit": "@6",
    "after_step": "@10",
    "before_flush": "@13",
}
ELSEWHERE = (
    "before_save",
    "during_write",
    "after_step",
)  # tests of the whole, and of other faults, are killed there


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(point, marks=pytest.mark.campaign) if point in ELSEWHERE else point
        for point in POINTS
    ],
)
def test_a_kill_at_a_named_point_changes_nothing(place: Place, point: str):
    plan = [Moment(point + AT.get(point, ""))]
    if point == "during_restore":
        plan.insert(0, Moment("after_step@10"))
    outcome = kill(place, f"point_{point}", plan)
    assert outcome.tried == len(plan), f"the point {point} was not reached"
    assert not outcome.problems, outcome.line()


@pytest.mark.parametrize(
    "step", [8, *(pytest.param(step, marks=pytest.mark.campaign) for step in (1, HORIZON - 1))]
)
def test_a_run_goes_on_from_any_step(place: Place, step: int):
    outcome = resume_anywhere(place, step)
    assert not outcome.problems, outcome.line()
