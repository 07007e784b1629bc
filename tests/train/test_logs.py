"""TensorBoard logs: every point once in the files themselves, whatever was interrupted."""

import itertools
import sys
from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from fusestore.errors import InvalidInputError, MissingDependencyError
from tests.helpers.train_runs import SETTINGS, held_out, run

SETTINGS = SETTINGS.model_copy(update={"epochs": 3, "eval_every": 2, "checkpoint_every": 3})


def scalars(folder):
    """(tag, step, value, time) of every scalar in the files of a folder, as they lie there."""
    return [
        (value.tag, event.step, value.simple_value, event.wall_time)
        for file in sorted(folder.iterdir())
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


def without_times(found):
    return sorted(found[:3] for found in found)


def interrupt(model_path, dataset, folder, step, **options):
    def fail(report):
        if report.step == step:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(model_path, dataset, SETTINGS, folder, progress=fail, **options)


def test_every_step_and_evaluation_is_logged(tiny_model_path, dataset, tmp_path):
    logs = tmp_path / "logs"
    manifest = run(
        tiny_model_path, dataset, SETTINGS, tmp_path, evaluation=held_out(), log_dir=logs
    ).manifest
    read = EventAccumulator(str(logs))
    read.Reload()
    losses = read.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 10))
    assert [event.value for event in losses] == pytest.approx(
        [point.loss for point in manifest.loss_curve]
    )
    for name in ("lm", "fused", "lm_weight", "learning_rate", "grad_norm", "tokens"):
        assert len(read.Scalars(f"train/{name}")) == 9
    assert sum(event.value for event in read.Scalars("train/tokens")) == manifest.num_tokens
    scores = {event.step: event.value for event in read.Scalars("held_out/bits_per_byte")}
    assert scores == pytest.approx(
        {point.step: point.metrics["bits_per_byte"] for point in manifest.evaluations}
    )
    plain = run(tiny_model_path, dataset, SETTINGS, tmp_path / "b", evaluation=held_out())
    assert plain.manifest == manifest


def test_resuming_doubles_nothing(tiny_model_path, dataset, tmp_path):
    options = {"evaluation": held_out()}
    run(tiny_model_path, dataset, SETTINGS, tmp_path / "a", log_dir=tmp_path / "whole", **options)
    logs = tmp_path / "broken"
    # Before the first checkpoint, then one and two steps after one; the last leaves half a record.
    for step in (2, 5, 8):
        interrupt(tiny_model_path, dataset, tmp_path / "b", step, log_dir=logs, **options)
    newest = max(logs.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-5])
    before = scalars(logs)
    run(tiny_model_path, dataset, SETTINGS, tmp_path / "b", log_dir=logs, **options)
    found = scalars(logs)
    assert max(Counter((tag, step) for tag, step, _, _ in found).values()) == 1
    assert without_times(found) == without_times(scalars(tmp_path / "whole"))
    # What was kept has the times of when it was made.
    early = {tuple(point) for point in found if 0 < point[1] <= 6}
    assert early <= {tuple(point) for point in before}
    assert all(not file.name.startswith(".") for file in logs.iterdir())


def test_an_evaluation_that_the_checkpoint_lacks_is_logged_once(tiny_model_path, dataset, tmp_path):
    """The checkpoint of step 6 is written after its evaluation; one made without it is not."""
    logs, calls = tmp_path / "logs", itertools.count()

    def evaluate(model):
        if next(calls) == 3:
            raise RuntimeError
        return {"bits_per_byte": 1.0}

    settings = SETTINGS.model_copy(update={"checkpoint_every": 5, "eval_every": 3})
    with pytest.raises(RuntimeError):
        run(tiny_model_path, dataset, settings, tmp_path, evaluation=evaluate, log_dir=logs)
    run(tiny_model_path, dataset, settings, tmp_path, evaluation=evaluate, log_dir=logs)
    steps = sorted(step for tag, step, *_ in scalars(logs) if tag == "held_out/bits_per_byte")
    assert steps == [0, 3, 6, 9]


def test_other_runs_in_the_folder_are_left_alone(tiny_model_path, dataset, tmp_path):
    logs = tmp_path / "logs"
    run(tiny_model_path, dataset, SETTINGS, tmp_path / "a", log_dir=logs)
    before = {file: file.read_bytes() for file in logs.iterdir()}
    other = SETTINGS.model_copy(update={"seed": 9})
    run(tiny_model_path, dataset, other, tmp_path / "b", log_dir=logs)
    assert all(file.read_bytes() == content for file, content in before.items())
    assert len(list(logs.iterdir())) == len(before) + 1


def test_logs_stay_out_of_the_model(tiny_model_path, dataset, tmp_path):
    with pytest.raises(InvalidInputError, match="every byte is accounted for"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path, log_dir=tmp_path / "model" / "logs")
    assert not (tmp_path / "model").exists()


def test_without_the_package(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fusestore\[tensorboard\]'"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path, log_dir=tmp_path / "logs")
    assert not (tmp_path / "model").exists()
