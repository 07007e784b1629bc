"""The kept store of the current format, and copies of it."""

import shutil
from pathlib import Path

import pytest

from fusestore.version import FORMAT_VERSION


@pytest.fixture(scope="session")
def first_store():
    """The kept store of this version; not to be changed."""
    return Path(__file__).parent.parent / f"kept_store/format-{FORMAT_VERSION}/store"


@pytest.fixture
def store(first_store, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(first_store, tmp_path / "store"))
