"""The line of a long step: alive on a terminal, a few plain ones anywhere else."""

import io

import pytest
from fusestore_cli import console
from fusestore_cli.console import ConsoleReporter
from rich.console import Console


@pytest.fixture
def said(monkeypatch):
    """What is written to a terminal, or to a pipe, of 200 columns."""

    def watch(terminal):
        text = io.StringIO()
        made = Console(file=text, force_terminal=terminal, width=200, highlight=False)
        monkeypatch.setattr(console, "messages", made)
        return text

    return watch


def train():
    with ConsoleReporter().measured_stage("Training x", "tokens") as progress:
        progress(10, 100, "step 1, loss 3.1000")
        progress(100, 100, "step 10, loss 2.5000, 1.0100 bits/byte after 5")


def test_a_terminal_shows_the_last_measurement_on_one_line(said):
    text = said(True)
    train()
    last = [line for line in text.getvalue().splitlines() if "Training x" in line][-1]
    assert "100/100" in last
    assert "loss 2.5000, 1.0100 bits/byte after 5" in last


def test_a_pipe_gets_plain_lines(said):
    text = said(False)
    train()
    lines = text.getvalue().splitlines()
    assert lines[0] == "Training x …"
    assert len(lines) == 2
    assert lines[1].startswith("Training x: 100/100 tokens (100 %)")
    assert lines[1].endswith(", step 10, loss 2.5000, 1.0100 bits/byte after 5")
    assert "\x1b" not in text.getvalue()


def test_a_step_without_measurements(said):
    text = said(False)
    with ConsoleReporter().stage("Capturing x", "tokens") as progress:
        progress(100, 100)
    assert text.getvalue().splitlines()[-1].startswith("Capturing x: 100/100 tokens (100 %)")
