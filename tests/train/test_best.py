"""The best model by held-out bits per byte, as the result."""

import pytest
from safetensors.torch import load_file

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.merge.artifact import how_made
from fusestore.report.summary import ModelResult
from tests.helpers.train_runs import SETTINGS, folder_bytes, held_out, run

SETTINGS = SETTINGS.model_copy(
    update={
        "result": "best",
        "eval_every": 1,
        "max_steps": 6,
        "schedule": "constant",
        "warmup": 0.0,
    }
)


class Scores:
    """An evaluation that gives what it is told, step by step, and looks at the work folder."""

    def __init__(self, values, work=None):
        self.values, self.work, self.bests = list(values), work, []

    def __call__(self, model):
        if self.work is not None:
            self.bests.append(sorted(path.name for path in self.work.glob("best-*")))
        return {"bits_per_byte": self.values.pop(0)}


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([5, 4, 3, 2, 3, 4, 5], 3),
        ([5, 4, 3, 3, 3, 4, 5], 2),
        ([5, 4, 3, 2, 1, 0.5, 0.1], 6),
        ([1, 4, 3, 2, 3, 4, 5], 0),
    ],
)
def test_the_weights_are_those_of_the_best_step(tiny_model_path, dataset, tmp_path, scores, best):
    result = run(tiny_model_path, dataset, SETTINGS, tmp_path, evaluation=Scores(scores))
    assert result.manifest.result_step == best
    assert len(result.manifest.loss_curve) == 6
    assert result.manifest.result_metrics == {"bits_per_byte": scores[best]}
    assert ModelResult.of("m", "mince", result.manifest).bits_per_byte_after == scores[best]
    said = how_made(result.manifest.model_dump(mode="json"))
    assert said.endswith(f"weights of step {best}" if best < 6 else "tokens trained")
    assert not (tmp_path / "work").exists()
    if best == 0:
        expected = load_file(tiny_model_path / "model.safetensors")
    else:
        # At a constant rate a shorter run makes the same steps.
        short = SETTINGS.model_copy(update={"max_steps": best, "result": "last"})
        run(tiny_model_path, dataset, short, tmp_path / "short", evaluation=Scores([0] * 7))
        expected = weights(tmp_path / "short")
    found = weights(tmp_path)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(expected[name]) for name in found)


def test_only_the_best_and_the_checkpoints_best_are_kept(tiny_model_path, dataset, tmp_path):
    settings = SETTINGS.model_copy(update={"checkpoint_every": 4})
    scores = Scores([9, 8, 7, 7.5, 7.6, 6, 5], tmp_path / "work")
    run(tiny_model_path, dataset, settings, tmp_path, evaluation=scores)
    names = [[int(name[5:-12]) for name in found] for found in scores.bests]
    # After step 5, the best, the checkpoint of step 4 still needs that of step 2.
    assert names == [[], [0], [1], [2], [2], [2], [2, 5]]


@pytest.mark.parametrize(
    "stopped_after", [2, 5, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 6))]
)
def test_a_run_cut_short_ends_with_the_same_best(tiny_model_path, dataset, tmp_path, stopped_after):
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})
    scores = [9, 8, 5, 4, 6, 4.5, 7]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(tiny_model_path, dataset, settings, whole, evaluation=Scores(scores))

    def fail(report):
        if report.step == stopped_after:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(tiny_model_path, dataset, settings, broken, evaluation=Scores(scores), progress=fail)
    done = 2 * ((stopped_after - 1) // 2)
    rest = Scores(scores[done + 1 if done else 0 :])
    run(tiny_model_path, dataset, settings, broken, evaluation=rest)
    assert folder_bytes(whole / "model") == folder_bytes(broken / "model")


def test_a_damaged_best_is_an_error(tiny_model_path, dataset, tmp_path):
    settings = SETTINGS.model_copy(update={"checkpoint_every": 2})

    def fail(report):
        if report.step == 5:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(
            tiny_model_path,
            dataset,
            settings,
            tmp_path,
            evaluation=Scores([9, 1, 5, 5, 5]),
            progress=fail,
        )
    (tmp_path / "work" / "best-1.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(CorruptionError, match="start over"):
        run(tiny_model_path, dataset, settings, tmp_path, evaluation=Scores([5, 5]))
    assert not (tmp_path / "model").exists()


def test_nothing_says_which_is_best(tiny_model_path, dataset, tmp_path):
    with pytest.raises(InvalidInputError, match="nothing is evaluated"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path)
    with pytest.raises(InvalidInputError, match=r"gives \['accuracy'\]"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path, evaluation=lambda _: {"accuracy": 1.0})
    assert not (tmp_path / "model").exists()


def test_by_held_out_documents(tiny_model_path, dataset, tmp_path):
    """Random tokens: whatever is learnt makes the held-out ones less likely, soon."""
    settings = SETTINGS.model_copy(update={"max_steps": 24, "eval_every": 3})
    manifest = run(tiny_model_path, dataset, settings, tmp_path, evaluation=held_out()).manifest
    scores = {point.step: point.metrics["bits_per_byte"] for point in manifest.evaluations}
    assert manifest.result_step == min(scores, key=scores.get)
