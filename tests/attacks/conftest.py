"""Copies of the kept store for strangers to change, and commands as their victims run them."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.command import Command
from tests.helpers.kept_copy import first_store

__all__ = ["command", "first_store", "parts", "store"]


@pytest.fixture
def store(first_store, tmp_path):
    """A copy of the kept store, without the dates of its files: that is quicker."""
    return Path(shutil.copytree(first_store, tmp_path / "store", copy_function=shutil.copyfile))


@pytest.fixture
def parts(first_store, tmp_path):
    """A function that copies some artifacts of the kept store, and all vocabularies."""

    def copy(*folders):
        root = tmp_path / "store"
        for folder in ("vocabularies", *folders):
            shutil.copytree(first_store / folder, root / folder, dirs_exist_ok=True)
        return root

    return copy


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)
