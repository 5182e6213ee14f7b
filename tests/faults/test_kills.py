"""One run that is interrupted at every named point equals the run that nothing happened to."""

from tests.faults.scenarios import POINTS, Moment, interrupt
from tests.faults.workspace import Workspace

# In the order in which one run meets them.
INTERRUPTIONS = (
    # The first file that is written.
    Moment("before_replace"),
    Moment("during_write@3"),
    Moment("before_commit@6"),
    # A signal: the run saves a step that is no multiple of the save interval, most likely 7.
    Moment("during_evaluation@7", action="term"),
    Moment("before_save@12"),
    Moment("after_step@13"),
    Moment("during_delete"),
    Moment("during_restore"),
    Moment("before_flush@16"),
)


def test_a_run_that_is_killed_at_every_named_point_is_the_same_run(workspace: Workspace):
    assert {moment.point.partition("@")[0] for moment in INTERRUPTIONS} >= set(POINTS)
    outcome = interrupt(workspace, "killed", INTERRUPTIONS)
    assert not outcome.problems, outcome.line()
    assert outcome.tried == len(INTERRUPTIONS), outcome.line()
