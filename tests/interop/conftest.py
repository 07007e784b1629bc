"""The command line, as in tests/cli."""

import pytest

from tests.helpers.command import Command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`fusestore`, in this process."""
    return Command(capsys, monkeypatch)
