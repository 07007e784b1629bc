"""A step's loss and gradient do not depend on how its windows are divided."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.losses import (
    count_positions,
    fusion_loss,
    fusion_terms,
    linear_fusion_loss,
    linear_fusion_terms,
)
from tests.helpers.dense_losses import dense_loss, objectives, random_batch

VOCAB, WIDTH = 11, 3


def cut(batch, windows):
    return {name: values[windows] for name, values in batch.items()}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    objective=objectives,
    cuts=st.lists(st.integers(0, 5), max_size=4),
    num_ranks=st.integers(1, 3),
    chunked=st.booleans(),
)
def test_a_step_in_parts_is_the_step_in_one(seed, objective, cuts, num_ranks, chunked):
    _, batch = random_batch(seed, 5, 4, VOCAB, 3)
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 4, WIDTH), (VOCAB, WIDTH))
    )
    expected = dense_loss(hidden @ weight.T, batch, objective)
    bounds = [0, *sorted(cuts), 5]
    parts = [slice(*pair) for pair in itertools.pairwise(bounds) if pair[0] < pair[1]]
    # Each rank divides by the mean of the ranks' counts; then the ranks' gradients are averaged.
    counts = count_positions(cut(batch, part) for part in parts) / num_ranks
    loss = torch.zeros((), dtype=torch.float64)
    for part in parts:
        if chunked:
            terms = linear_fusion_terms(
                hidden[part], weight, cut(batch, part), objective, num_positions=counts
            )
        else:
            terms = fusion_terms(
                hidden[part] @ weight.T, cut(batch, part), objective, num_positions=counts
            )
        loss = loss + terms.loss / num_ranks
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    for found, wanted in zip(
        torch.autograd.grad(loss, (hidden, weight)),
        torch.autograd.grad(expected, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_positions_without_a_label_or_a_distribution_are_not_counted():
    logits, batch = random_batch(0, 2, 4, VOCAB, 2)
    batch["next_ids"][:] = 1
    batch["next_ids"][0, 0] = -100
    batch["fused_mask"][:] = True
    batch["fused_mask"][1, 1] = False
    batch["fused_logprobs"][:] = -1.0
    batch["fused_logprobs"][1, 2] = -torch.inf
    assert count_positions([batch]).tolist() == [7.0, 5.0]
    assert count_positions([batch, batch]).tolist() == [14.0, 10.0]
    assert count_positions([]).tolist() == [0.0, 0.0]
    only_text = {"next_ids": batch["next_ids"]}
    assert count_positions([only_text]).tolist() == [7.0, 0.0]
    own = fusion_loss(logits, batch, 0.5)
    assert fusion_loss(logits, batch, 0.5, num_positions=count_positions([batch])) == own
    twice = fusion_loss(logits, batch, 0.5, num_positions=count_positions([batch, batch]))
    torch.testing.assert_close(2 * twice, own)


def test_another_shape_of_counts_is_refused():
    logits, batch = random_batch(0, 1, 2, VOCAB, 2)
    with pytest.raises(InvalidInputError, match=r"shape \(\); expected \[2\].*count_positions"):
        fusion_loss(logits, batch, num_positions=torch.tensor(3.0))
    with pytest.raises(InvalidInputError, match=r"shape \(3,\)"):
        linear_fusion_loss(logits, torch.eye(VOCAB).double(), batch, num_positions=torch.ones(3))
