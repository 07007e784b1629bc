"""The command line, and the tiny fusion of `tiny_job`."""

import pytest

from tests.helpers.command import Command
from tests.helpers.finished_job import _own_home, first_store, job, store

__all__ = ["_own_home", "command", "first_store", "job", "store"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)
