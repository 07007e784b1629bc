"""Rows that are samples: unbiased where they are accepted, refused where they would not be."""

import math

import numpy as np
import pytest
import torch

from fusestore.capture.sampling import tally, uniforms
from fusestore.errors import IncompatibleError
from fusestore.losses import fusion_loss
from tests.helpers.dense_losses import full_batch


@pytest.mark.parametrize("divergence", ["cross_entropy", "forward_kl"])
@pytest.mark.parametrize("tail", ["renormalize", "ghost"])
def test_samples_give_the_gradient_of_the_whole_distribution_in_the_mean(tail, divergence):
    """Against dense float64, over 20,000 samples of one row (arXiv 2503.16870).

    The cross-entropy itself is unbiased too; forward KL lacks the target's entropy, of which a
    sample's is no unbiased estimate.
    """
    count, vocab_size, draws = 20_000, 15, 8
    rng = np.random.default_rng(3)
    p = torch.from_numpy(rng.dirichlet(np.full(vocab_size, 0.7)))
    row = torch.from_numpy(rng.normal(0, 2, vocab_size)).requires_grad_()
    expected = -(p * torch.log_softmax(row, -1)).sum()
    [expected_gradient] = torch.autograd.grad(expected, row)

    points = uniforms(9, np.arange(count), draws)
    cumulated = torch.cumsum(p, -1)
    drawn = torch.searchsorted(cumulated, torch.from_numpy(points), right=True)
    ids, logprobs = tally(drawn.clamp(max=vocab_size - 1).int())
    batch = {
        "next_ids": torch.zeros(1, count, dtype=torch.int64),
        "fused_ids": ids.long()[None],
        "fused_logprobs": logprobs[None],
        "fused_tail": torch.full((1, count), -torch.inf),
        "fused_mask": torch.ones(1, count, dtype=torch.bool),
        "fused_sampled": torch.tensor([True]),
    }
    logits = row.detach().expand(1, count, vocab_size).clone().requires_grad_()
    loss = fusion_loss(logits, batch, lm_weight=0.0, tail=tail, divergence=divergence)
    [gradient] = torch.autograd.grad(loss, logits)
    per_sample = gradient[0] * count
    error = per_sample.std(0) / math.sqrt(count)
    assert ((per_sample.mean(0) - expected_gradient).abs() < 5 * error).all()
    if divergence == "cross_entropy":
        spread = math.sqrt(float((p * torch.log_softmax(row, -1).detach() ** 2).sum()))
        assert abs(loss.item() - expected.item()) < 5 * spread / math.sqrt(draws * count)


def test_the_k_most_likely_alone_are_biased():
    """What the samples are for: the renormalised top k has another gradient, at any sample size."""
    p = torch.tensor([0.5, 0.2, 0.15, 0.15], dtype=torch.float64)
    batch = {
        "next_ids": torch.tensor([[0]]),
        "fused_ids": torch.tensor([[[0, 1]]]),
        "fused_logprobs": p[:2].log().float()[None, None],
        "fused_tail": p[2:].sum().log().float()[None, None],
        "fused_mask": torch.tensor([[True]]),
    }
    logits = p.log()[None, None].requires_grad_()
    [gradient] = torch.autograd.grad(fusion_loss(logits, batch, 0.0, tail="renormalize"), logits)
    assert gradient.abs().max() > 0.1


def test_what_samples_would_bias_is_refused():
    logits, batch = full_batch(1, 2, 3, 9, 4)
    batch["fused_sampled"] = torch.tensor([False, True])
    for divergence in ("reverse_kl", "jensen_shannon"):
        with pytest.raises(IncompatibleError, match=rf"divergence is '{divergence}'.*this batch"):
            fusion_loss(logits, batch, divergence=divergence)
        fusion_loss(logits, batch, 1.0, divergence=divergence)
    with pytest.raises(IncompatibleError, match=r"temperature is 2\.0.*Use temperature 1"):
        fusion_loss(logits, batch, temperature=2.0)
    batch["fused_sampled"] = torch.tensor([False, False])
    fusion_loss(logits, batch, temperature=2.0, divergence="reverse_kl")
