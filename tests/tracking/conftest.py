"""The report of a run with everything in it, which several files of tests read."""

import pytest

from tests.tracking.runs import evaluation_record, make_run, report_of, step_record

# A title and a text that would change the page if they were not escaped.
NAME = "quick & <b>dirty"
TEXT = "<script>alert(1)</script> & more\n\nlines"


@pytest.fixture(scope="session")
def full_report(tmp_path_factory) -> str:
    """The page of 40 steps with three evaluations, the second of which is the best."""
    steps = [step_record(s) for s in range(40)]
    evaluations = [
        evaluation_record(0, 11.0),
        evaluation_record(20, 3.25),
        evaluation_record(40, 3.5, TEXT),
    ]
    return report_of(make_run(tmp_path_factory.mktemp("runs"), steps, evaluations, name=NAME))
