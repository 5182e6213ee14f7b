"""A few of each fault that the campaign makes hundreds of: a kill at every named point, damage, resuming anywhere."""

import pytest

from tests.faults.scenarios import HORIZON, POINTS, Moment, Place, damage_checkpoint, kill, resume_anywhere

AT = {"before_save": "@9", "during_write": "@12", "before_commit": "@6", "after_step": "@10", "before_flush": "@13"}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_changes_nothing(place: Place, point: str):
    plan = [Moment(point + AT.get(point, ""))]
    if point == "during_restore":
        plan.insert(0, Moment("after_step@10"))
    outcome = kill(place, f"point_{point}", plan)
    assert outcome.tried == len(plan), f"the point {point} was not reached"
    assert not outcome.problems, outcome.line()


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_damage_to_a_checkpoint_is_never_silent(place: Place, seed: int):
    outcome = damage_checkpoint(place, seed)
    assert not (outcome.problems or outcome.silent), outcome.line()


@pytest.mark.parametrize("step", [1, 8, HORIZON - 1])
def test_a_run_goes_on_from_any_step(place: Place, step: int):
    outcome = resume_anywhere(place, step)
    assert not outcome.problems, outcome.line()
