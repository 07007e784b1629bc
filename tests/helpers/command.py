"""Running `fusestore` as a user does, in this process or in one of its own."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fork_server import python

PROGRAM = "from fusestore_cli.app import main; main()"


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The paragraph that a failure ends with."""
        assert self.err.count("Error: ") == 1, self.err
        return self.err.partition("Error: ")[2]

    @property
    def json(self) -> Any:
        """Standard output, parsed."""
        return json.loads(self.out)


class Command:
    """`command("verify", "--store", …)` runs what `main` runs, in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *arguments: str | Path) -> Outcome:
        from fusestore_cli.app import run_command

        self._patch.setattr(sys, "argv", ["fusestore", *map(str, arguments)])
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command()
        code = ended.value.code
        printed = self._capture.readouterr()
        return Outcome(int(code or 0), printed.out, printed.err)

    def succeeds(self, *arguments: str | Path) -> Outcome:
        """A command that must end with exit code 0."""
        outcome = self(*arguments)
        assert outcome.code == 0, outcome.err
        return outcome

    def fails(self, *arguments: str | Path) -> str:
        """The message of a command that must end with exit code 1: one paragraph, no traceback."""
        outcome = self(*arguments)
        assert outcome.code == 1, outcome.out + outcome.err
        assert "Traceback" not in outcome.err
        assert "defect of fusestore" not in outcome.err
        message = outcome.message.strip()
        assert "\n\n" not in message
        return message


def start(
    *arguments: str | Path, interpreter: str | None = None, **options: Any
) -> subprocess.Popen[str]:
    """The command in a process of its own, its output piped; by default in a fork: see `python`."""
    return subprocess.Popen(
        [interpreter or python(), "-c", PROGRAM, *map(str, arguments)],
        # A test runner started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=_heed_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
