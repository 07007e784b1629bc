"""`auto`: a run is begun in what its device has, and goes on in that on whatever machine."""

import pytest

from fusestore.errors import AlreadyExistsError, FingerprintMismatchError
from fusestore.models.precision import PrecisionChoice
from fusestore.train import trainer
from fusestore.train.manifest import TrainingPlan
from tests.helpers.lines import Lines
from tests.helpers.train_runs import SETTINGS, folder_bytes, held_out, manifest, run, signal_after

AUTO = SETTINGS.model_copy(update={"precision": "auto"})
OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


@pytest.fixture
def machine(monkeypatch):
    """Makes `auto` choose like a machine that has bfloat16, or has not."""

    def become(value):
        choice = PrecisionChoice(value, "made up")
        monkeypatch.setattr(trainer, "choose_precision", lambda _device: choice)

    return become


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_run_goes_on_in_the_precision_it_was_begun_in(
    tiny_model_path, dataset, tmp_path, machine, first
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    named = SETTINGS.model_copy(update={"precision": first})
    other = SETTINGS.model_copy(update={"precision": OTHER[first]})
    silent, begun, resumed, again = Lines(), Lines(), Lines(), Lines()
    documents = held_out()
    run(tiny_model_path, dataset, named, whole, evaluation=documents, reporter=silent)
    assert silent.said == []

    machine(first)
    options = {"evaluation": documents, "progress": signal_after(3)}
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, dataset, AUTO, broken, reporter=begun, **options)
    assert begun.said == [f"model: precision {first} (made up)"]
    machine(OTHER[first])
    with pytest.raises(FingerprintMismatchError, match="precision"):
        run(tiny_model_path, dataset, other, broken, evaluation=documents)
    run(tiny_model_path, dataset, AUTO, broken, evaluation=documents, reporter=resumed)
    assert resumed.said == [f"model: precision {first} (this run was begun with it)"]
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")
    assert manifest(broken)["plan"]["settings"]["precision"] == first

    # A finished one is there, for `auto` on any machine.
    run(tiny_model_path, dataset, AUTO, broken, evaluation=documents, reporter=again)
    assert again.said == []
    with pytest.raises(AlreadyExistsError):
        run(tiny_model_path, dataset, other, broken, evaluation=documents)


@pytest.mark.parametrize("name", ["precision", "attend_within"])
def test_a_plan_never_says_auto(name):
    settled = AUTO.model_copy(update={"precision": "float32", "attend_within": "window"})
    settings = settled.model_copy(update={name: "auto"})
    with pytest.raises(ValueError, match=f"{name} of a plan is settled"):
        TrainingPlan(
            dataset_digest="0",
            base_model_digest="1",
            settings=settings,
            world_size=1,
            total_steps=1,
        )


def test_processes_that_differ_take_what_all_of_them_have(
    tiny_model_path, dataset, tmp_path, machine, monkeypatch
):
    machine("bfloat16")
    asked = []

    def any_process(_accelerator, here):
        asked.append(here)
        return len(asked) == 1

    monkeypatch.setattr(trainer, "any_process", any_process)
    lines = Lines()
    run(tiny_model_path, dataset, AUTO, tmp_path, reporter=lines)
    assert asked == [False]
    assert lines.said == ["model: precision float32 (another process has no bfloat16 in hardware)"]
    assert manifest(tmp_path)["plan"]["settings"]["precision"] == "float32"
