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


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def reported(clock, reports):
    """The last line of a stage; `reports` are (seconds since its beginning, done)."""
    with ConsoleReporter().stage("Sampling x", "tokens") as progress:
        for seconds, done in reports:
            clock[0] = 100.0 + seconds
            progress(done, reports[-1][1])


def test_the_rate_of_a_stage_is_that_of_its_whole_time(said, clock):
    """Here the model is loaded for two seconds, and both batches are reported at their end."""
    text = said(False)
    reported(clock, [(2.0, 512), (2.0002, 768)])
    assert text.getvalue().splitlines()[-1] == (
        "Sampling x: 768/768 tokens (100 %), 384 tokens/s, in 0:00:02"
    )


def test_a_stage_of_a_moment_has_no_rate(said, clock):
    text = said(False)
    reported(clock, [(0.001, 512), (0.002, 768)])
    assert text.getvalue().splitlines()[-1] == "Sampling x: 768/768 tokens (100 %), in 0:00:00"


def test_what_an_earlier_run_did_is_no_rate(said, clock):
    text = said(False)
    reported(clock, [(0.1, 9_000), (50.0, 9_900), (100.0, 10_000)])
    lines = text.getvalue().splitlines()
    assert lines[1].endswith("9,900/10,000 tokens (99 %), 18 tokens/s, 0:00:06 left")
    assert lines[2].endswith("10 tokens/s, in 0:01:40")


@pytest.mark.parametrize(("since", "left"), [(0, ""), (4.9, ""), (6, "0:00:09")])
def test_there_is_no_estimate_before_it_means_something(clock, since, left):
    """Nothing is said in the first seconds of work, however long the loading before took."""
    meter = console._Meter()
    clock[0] += 60
    meter.report(0, 100)
    clock[0] += since
    if since:
        meter.report(40, 100)
    bars = Progress(disable=True)
    bars.add_task("Capturing x", total=100, unit="tokens", meter=meter)
    (task,) = bars.tasks
    assert console._RemainingColumn().render(task).plain == left
    assert bool(console._RateColumn().render(task).plain) == bool(left)


def test_a_terminal_ends_with_the_rate_of_the_whole_time(clock):
    meter = console._Meter()
    clock[0] += 2
    meter.report(512, 768)
    meter.report(768, 768)
    bars = Progress(disable=True)
    task = bars.add_task("Sampling x", total=768, unit="tokens", meter=meter)
    bars.update(task, completed=768)
    assert console._RateColumn().render(bars.tasks[0]).plain == "384 tokens/s"
    assert console._RemainingColumn().render(bars.tasks[0]).plain == ""


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
