"""What learning curves say: the best of each, and how many tokens distributions save."""

import re

import pytest

from fusestore.report.learning_curves import (
    LearningCurve,
    best,
    token_savings,
    tokens_to_reach,
)
from fusestore.train.manifest import (
    EvaluationPoint,
    TrainingManifest,
    TrainingPlan,
)
from fusestore.train.settings import TrainSettings

TEXT_ALONE = ((0, 4.0), (100, 3.0), (200, 2.5), (300, 2.5), (400, 2.7))


def curve(name, objective, points, base="a"):
    tokens, bits = zip(*points, strict=True)
    return LearningCurve(name, objective, base, tokens, bits)


def manifest(metrics, total_steps=8):
    settings = TrainSettings(objective="clm", precision="float32", attend_within="window")
    plan = TrainingPlan(
        dataset_digest="d",
        base_model_digest="base",
        settings=settings,
        world_size=1,
        total_steps=total_steps,
    )
    points = tuple(EvaluationPoint(step=step, metrics=found) for step, found in metrics.items())
    return TrainingManifest(
        plan=plan,
        result_step=total_steps,
        num_tokens=1_000,
        loss_curve=(),
        evaluations=points,
        files={},
    )


def test_the_first_of_equal_points_is_the_best():
    assert best(TEXT_ALONE) == (200, 2.5)
    assert tokens_to_reach(TEXT_ALONE, 2.9) == 200
    assert tokens_to_reach(TEXT_ALONE, 2.4) is None


def test_a_curve_is_read_from_a_manifest():
    scores = {0: 4.0, 3: 3.0, 8: 2.0}
    found = LearningCurve.of(
        "plain", manifest({step: {"bits_per_byte": bits} for step, bits in scores.items()})
    )
    assert found == curve("plain", "clm", [(0, 4.0), (375, 3.0), (1_000, 2.0)], base="base")
    assert found.title == "plain (the text alone)"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        # Before and after: that is no curve.
        {0: {"bits_per_byte": 4.0}, 8: {"bits_per_byte": 2.0}},
        {0: {"accuracy": 0.1}, 3: {"accuracy": 0.2}, 8: {"accuracy": 0.3}},
    ],
)
def test_without_scores_along_the_way_there_is_no_curve(metrics):
    assert LearningCurve.of("plain", manifest(metrics)) is None


def test_a_run_with_distributions_is_compared_with_the_best_on_the_text_alone():
    weaker = curve("weaker", "clm", [(0, 4.0), (100, 3.5), (200, 3.4)])
    elsewhere = curve("elsewhere", "clm", [(0, 1.0), (100, 1.0), (200, 1.0)], base="b")
    plain = curve("plain", "clm", TEXT_ALONE)
    fused = curve("fused", "fuse", [(0, 4.0), (80, 2.5), (160, 2.25)])
    (saving,) = token_savings([weaker, elsewhere, plain, fused])
    assert (saving.run, saving.baseline) == ("fused", "plain")
    assert (saving.best_of_baseline, saving.tokens_of_baseline) == (2.5, 200)
    assert (saving.best_of_run, saving.tokens_of_run) == (2.25, 80)
    assert saving.sentence == (
        "fused reaches the best of plain, which learns from the text alone (2.5000 bits per byte "
        "after 200 tokens), after 80 tokens, 2.5 times fewer; its own best is 2.2500, 0.2500 lower."
    )
    assert token_savings([plain, weaker]) == []
    assert token_savings([fused]) == []


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(0, 4.0), (80, 3.0), (160, 2.75)], "does not reach .* best is 2.7500, 0.2500 higher"),
        ([(0, 4.0), (80, 3.0), (300, 2.5)], "after 300 tokens, 1.5 times as many; .* the same"),
        ([(0, 4.0), (80, 3.0), (200, 2.4)], "after 200 tokens, as many; .* 0.1000 lower"),
    ],
)
def test_a_fusion_that_does_not_pay_is_called_so(points, words):
    plain, fused = curve("plain", "clm", TEXT_ALONE), curve("fused", "fuse", points)
    (saving,) = token_savings([plain, fused])
    assert re.search(words, saving.sentence), saving.sentence


def test_a_baseline_that_training_only_harms():
    plain = curve("plain", "clm", [(0, 2.0), (100, 2.1), (200, 2.2)])
    fused = curve("fused", "kd", [(0, 2.0), (100, 1.9), (200, 2.2)])
    (saving,) = token_savings([plain, fused])
    assert saving.sentence.endswith(
        "after 0 tokens, as many; its own best is 1.9000, 0.1000 lower."
    )
