"""SIGINT and SIGTERM: a checkpoint of whole steps, a word, and the same bytes in the end."""

import os
import signal
import time

import pytest

from fusestore.train.process_state import stop_signals
from fusestore.train.student.model_folder import publish_model
from tests.helpers.train_runs import SETTINGS, folder_bytes, held_out, run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0, 3, 6])
def test_a_signal_ends_an_evaluation_at_once(tiny_model_path, dataset, tmp_path, number, moment):
    """The checkpoint is of the step before it; the run that goes on evaluates first."""
    settings = SETTINGS.model_copy(update={"eval_every": 3})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    step, finished = 0, []

    def count(report):
        nonlocal step
        step = report.step

    def evaluate(model):
        found = float(sum(value.double().abs().sum() for value in model.parameters()))
        if not finished and step == moment:
            finished.append(step)
            os.kill(os.getpid(), number)
            raise AssertionError("a signal must end this at once")
        return {"sum": found}

    finished.append(-1)
    run(tiny_model_path, dataset, settings, whole, evaluation=evaluate)
    finished.clear()
    with pytest.raises(KeyboardInterrupt, match=f"Stopped after step {moment} of 6"):
        run(tiny_model_path, dataset, settings, broken, evaluation=evaluate, progress=count)
    assert (broken / "work" / "checkpoint").is_dir() == (moment > 0)
    run(tiny_model_path, dataset, settings, broken, evaluation=evaluate, progress=count)
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")


def test_a_signal_after_the_last_step_stops_nothing(
    tiny_model_path, dataset, tmp_path, monkeypatch
):
    """What is computed is published rather than kept."""
    from fusestore.train import trainer

    publish = publish_model

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return publish(*arguments)

    monkeypatch.setattr(trainer, "publish_model", interrupted)
    run(tiny_model_path, dataset, SETTINGS, tmp_path)
    assert (tmp_path / "model" / "manifest.json").exists()


def test_a_model_that_could_not_be_published_is_kept(
    tiny_model_path, dataset, tmp_path, monkeypatch
):
    """With `checkpoint_every` the last step has a checkpoint until the model is there."""
    from fusestore.train import trainer

    settings = SETTINGS.model_copy(update={"checkpoint_every": 4})
    whole = run(tiny_model_path, dataset, settings, tmp_path / "whole", evaluation=held_out())

    def fail(*arguments):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "publish_model", fail)
        with pytest.raises(OSError, match="no space"):
            run(tiny_model_path, dataset, settings, tmp_path / "broken", evaluation=held_out())
    seen = []
    again = run(
        tiny_model_path,
        dataset,
        settings,
        tmp_path / "broken",
        evaluation=held_out(),
        progress=seen.append,
    )
    assert not seen
    assert again.manifest == whole.manifest


def test_what_signals_do(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_signals() as stops:
        assert not stops.requested
        signal.raise_signal(signal.SIGINT)
        # The launcher passes on what the terminal has sent already.
        signal.raise_signal(signal.SIGINT)
        assert stops.requested
        now += 60.0
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with stop_signals() as stops:
        signal.raise_signal(signal.SIGTERM)
        assert stops.requested
    with stop_signals() as stops, pytest.raises(KeyboardInterrupt), stops.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == handler
