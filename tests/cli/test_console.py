"""The line of a long step: alive on a terminal, a few plain ones anywhere else."""

import io
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from fusestore_cli import console
from fusestore_cli.console import ConsoleReporter
from rich.console import Console
from rich.progress import Progress

from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.store.layout import Store
from fusestore.train import run
from fusestore.train.settings import TrainSettings


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


def test_there_is_no_estimate_before_it_means_something():
    """By a clock of our own: nothing is left to say in the first seconds, or without a rate."""
    clock = [100.0]
    bars = Progress(get_time=lambda: clock[0], disable=True)
    bars.add_task("Capturing x", total=None, unit="tokens")
    (task,) = bars.tasks
    column = console._RemainingColumn()
    said = []
    for done in (0, 10, 20, 30, 40):
        said.append(column.render(task).plain)
        clock[0] += 2
        bars.update(task.id, completed=done, total=100)
    assert said[:3] == ["", "", ""]
    assert column.render(task).plain == "0:00:12"


def test_the_total_of_a_training_is_its_steps(monkeypatch):
    """It is known from the first step on, and does not move."""
    seen = []

    class Watching(SilentReporter):
        def measured_stage(self, title, unit):
            assert unit == "steps"
            return nullcontext(lambda done, total, _: seen.append((done, total)))

    def train(*_, progress, **__):
        point = SimpleNamespace(loss=1.0)
        for step, tokens in ((1, 70), (2, 190), (3, 200)):
            progress(
                SimpleNamespace(
                    step=step,
                    total_steps=3,
                    num_tokens_so_far=tokens,
                    point=point,
                    evaluation=None,
                )
            )

    opened = SimpleNamespace(tokenizer=SimpleNamespace(digest=""), name="m")
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "check_tokenizer", lambda *_: None)
    monkeypatch.setattr(run, "_open", lambda *_: SimpleNamespace(digest="0" * 64))
    monkeypatch.setattr(Model, "open", lambda *_, **__: opened)
    run.train_model(Store.open("nowhere"), "m", "m", "f", TrainSettings(), reporter=Watching())
    assert seen == [(1, 3), (2, 3), (3, 3)]
