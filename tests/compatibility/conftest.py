"""What commit c5b4eae (version 0.1.0) wrote, unpacked once for all tests of this folder."""

import tarfile
from pathlib import Path

import pytest

from tests.compatibility import ARCHIVE


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """A folder with what the old commit wrote; runs/old is the run."""
    folder = tmp_path_factory.mktemp("c5b4eae")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "runs").mkdir()
    (folder / "run").rename(folder / "runs" / "old")
    return folder
