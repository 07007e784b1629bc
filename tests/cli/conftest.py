"""The command line, and the tiny fusion of tests/pipeline."""

import pytest

from tests.helpers.command import Command
from tests.pipeline.conftest import _own_home, first_store, job, store

__all__ = ["_own_home", "command", "first_store", "job", "store"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)
