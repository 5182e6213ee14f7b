"""One place for all scenarios of a test process: the run that nothing happens to is trained once."""

import pytest

from tests.faults.scenarios import Place


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Place:
    """A folder with data, an uninterrupted run, and programs that are compiled already."""
    return Place(tmp_path_factory.mktemp("place"))
