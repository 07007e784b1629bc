"""What several test processes need is made by the first; the others wait for it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fusestore.storage.file_lock import locked


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of this test run, which `make` creates; not to be changed afterwards."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with locked(base / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder
