"""The kept store, or as much of it as a test changes."""

import shutil

import pytest

from tests.helpers.kept_copy import first_store  # noqa: F401 - a fixture


@pytest.fixture
def store(first_store, tmp_path):  # noqa: F811
    """A copy of the whole kept store."""
    return shutil.copytree(first_store, tmp_path / "store")


@pytest.fixture
def parts(first_store, tmp_path):  # noqa: F811
    """A function that copies some artifacts of the kept store, and all vocabularies."""

    def copy(*folders):
        root = tmp_path / "store"
        for folder in ("vocabularies", *folders):
            shutil.copytree(first_store / folder, root / folder, dirs_exist_ok=True)
        return root

    return copy
