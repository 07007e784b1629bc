"""Divergences that a program registers."""

import json
import subprocess
import sys

import pytest
import torch

from fusestore.errors import InvalidInputError
from fusestore.losses import (
    FusionObjective,
    divergence_names,
    divergence_registry,
    fusion_loss,
    linear_fusion_loss,
    register_divergence,
)
from fusestore.train import TrainSettings
from fusestore.train.manifest import TrainingPlan
from tests.helpers.dense_losses import DIVERGENCES, random_batch


@pytest.fixture
def squared():
    """½ Σ (P − Q)², registered for the length of a test."""

    @register_divergence("squared")
    def function(target, student):
        q = torch.softmax(student, -1)
        difference = q - target.exp()
        value = difference.square().sum(-1) / 2
        inner = (difference * q).sum(-1, keepdim=True)
        return value, q * (difference - inner)

    yield function
    del divergence_registry._ENTRIES["squared"]


def test_a_registered_divergence_trains(squared):
    assert divergence_names() == [*DIVERGENCES, "squared"]
    logits, batch = random_batch(3, 2, 5, 12, 12)
    assert torch.autograd.gradcheck(
        lambda values: fusion_loss(values, batch, 0.3, divergence="squared"),
        logits.requires_grad_(),
    )


def test_it_has_the_value_of_its_definition_over_hidden_states_too(squared):
    target = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    batch = {
        "next_ids": torch.tensor([[0]]),
        "fused_ids": torch.tensor([[[0, 1, 2]]]),
        "fused_logprobs": target.log()[None, None].float(),
        "fused_tail": torch.tensor([[-torch.inf]]),
        "fused_mask": torch.tensor([[True]]),
    }
    logits = torch.tensor([[[1.0, -1.0, 0.5]]], dtype=torch.float64)
    q = torch.softmax(logits[0, 0], -1)
    expected = (target - q).square().sum() / 2
    loss = fusion_loss(logits, batch, 0.0, divergence="squared")
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    identity = torch.eye(3, dtype=torch.float64)
    other = linear_fusion_loss(logits, identity, batch, 0.0, divergence="squared")
    assert float(other) == pytest.approx(float(expected), rel=1e-6)


def test_a_name_is_registered_once(squared):
    for name in ("squared", "reverse_kl"):
        with pytest.raises(InvalidInputError, match="exists already"):
            register_divergence(name)(lambda target, student: (target, student))


@pytest.mark.parametrize(
    ("name", "hint"), [("squard", "Did you mean 'squared'"), ("zzz", "Choose from")]
)
def test_an_unknown_name_is_answered_with_the_nearest(squared, name, hint):
    with pytest.raises(InvalidInputError, match=hint):
        FusionObjective(divergence=name)
    with pytest.raises(ValueError, match=hint):
        TrainSettings(divergence=name)


def test_samples_are_refused_unless_it_is_unbiased(squared):
    with pytest.raises(ValueError, match="divergence is 'squared'"):
        FusionObjective(divergence="squared").check_samples("the batch")

    @register_divergence("scaled", unbiased=True)
    def scaled(target, student):
        logq = torch.log_softmax(student, -1)
        return -2 * (target.exp() * logq).sum(-1), 2 * (logq.exp() - target.exp())

    FusionObjective(divergence="scaled").check_samples("the batch")
    del divergence_registry._ENTRIES["scaled"]


def test_a_manifest_is_read_without_the_plugin_that_its_run_used(squared):
    plan = TrainingPlan(
        dataset_digest="a",
        base_model_digest="b",
        settings=TrainSettings(divergence="squared", precision="float32", attend_within="window"),
        world_size=1,
        total_steps=1,
    )
    data = plan.to_bytes()
    del divergence_registry._ENTRIES["squared"]
    assert TrainingPlan.from_bytes(data, "plan.json") == plan
    divergence_registry._ENTRIES["squared"] = divergence_registry._Entry(squared, unbiased=False)
    assert json.loads(data)["settings"]["divergence"] == "squared"


def test_names_are_known_without_torch():
    code = (
        "import sys; from fusestore.train.settings import TrainSettings; "
        "TrainSettings(divergence='jensen_shannon'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
