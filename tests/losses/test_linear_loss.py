"""The losses over hidden states equal those over logits, whatever the pieces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.losses import FusionObjective, fusion_terms, linear_fusion_loss, linear_fusion_terms
from fusestore.losses import linear_loss as linear_loss_module
from fusestore.losses.row_losses import CHUNK_LOGITS
from tests.helpers.dense_losses import (
    DIVERGENCES,
    dense_loss,
    full_batch,
    objectives,
    random_batch,
)


def head(batch_shape, vocab_size, width, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((*batch_shape, width), (vocab_size, width), (vocab_size,))
    )
    return hidden, weight, bias


def plain_logits(hidden, weight, bias, softcap):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def gradients(loss, tensors):
    return torch.autograd.grad(loss, [tensor for tensor in tensors if tensor is not None])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(2, 12)),
    k=st.integers(1, 12),
    objective=objectives,
    has_bias=st.booleans(),
    softcap=st.sampled_from([None, 0.7, 5.0]),
    rows_per_product=st.integers(1, 7),
    rows_per_piece=st.integers(1, 3),
)
def test_equals_the_definition(
    seed, shape, k, objective, has_bias, softcap, rows_per_product, rows_per_piece
):
    batch_size, length, vocab_size = shape
    _, batch = random_batch(seed, batch_size, length, vocab_size, min(k, vocab_size))
    hidden, weight, bias = head((batch_size, length), vocab_size, 3, seed)
    bias = bias if has_bias else None
    expected = dense_loss(plain_logits(hidden, weight, bias, softcap), batch, objective)
    expected_gradients = gradients(3 * expected, (hidden, weight, bias))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(linear_loss_module.PRODUCT_LOGITS, "cpu", rows_per_product * vocab_size)
        patch.setitem(CHUNK_LOGITS, "cpu", rows_per_piece * vocab_size)
        loss = linear_fusion_terms(
            hidden, weight, batch, objective, bias=bias, softcap=softcap
        ).loss
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    for found, wanted in zip(
        gradients(3 * loss, (hidden, weight, bias)), expected_gradients, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tail", ["renormalize", "ghost"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence, tail):
    _, batch = full_batch(7, 2, 3, 9, 4)
    tensors = head((2, 3), 9, 4, 1)
    assert torch.autograd.gradcheck(
        lambda hidden, weight, bias: linear_fusion_loss(
            hidden, weight, batch, 0.4, 2.0, tail, divergence, bias=bias, softcap=3.0
        ),
        tensors,
    )


def test_equals_the_loss_over_logits_in_float32():
    _, batch = full_batch(3, 2, 40, 500, 16)
    hidden, weight, bias = head((2, 40), 500, 24, 2, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(linear_loss_module.PRODUCT_LOGITS, "cpu", 7 * 500)
        terms = linear_fusion_terms(hidden, weight, batch, bias=bias)
    plain = fusion_terms(plain_logits(hidden, weight, bias, None), batch)
    torch.testing.assert_close(terms, plain)
    for found, wanted in zip(
        gradients(terms.loss, (hidden, weight, bias)),
        gradients(plain.loss, (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_under_autocast_and_in_the_weights(divergence):
    """The products round like a linear layer's; sums over pieces do not round at all."""
    _, batch = full_batch(3, 2, 40, 500, 16)
    hidden, weight, bias = head((2, 40), 500, 24, 2, torch.float32)
    objective = FusionObjective(0.5, 1.0, "ghost", divergence)
    with torch.autocast("cpu", torch.bfloat16):
        plain = fusion_terms(plain_logits(hidden, weight, bias, None), batch, objective)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(linear_loss_module.PRODUCT_LOGITS, "cpu", 7 * 500)
            patch.setattr(linear_loss_module, "_BLOCK_WEIGHTS", 24 * 70)
            terms = linear_fusion_terms(hidden, weight, batch, objective, bias=bias)
    assert terms.loss.dtype == torch.float32
    torch.testing.assert_close(terms.loss, plain.loss, rtol=2e-3, atol=1e-4)
    found = gradients(terms.loss, (hidden, weight, bias))
    wanted = gradients(plain.loss, (hidden, weight, bias))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight, bias)]
    loss = linear_fusion_terms(low[0], low[1], batch, objective, bias=low[2]).loss
    for one, other in zip(gradients(loss, low), wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_finite_with_a_peaked_student_in_bfloat16():
    _, batch = full_batch(2, 1, 4, 30, 5)
    hidden, weight, _ = head((1, 4), 30, 8, 2, torch.float32)
    low = [(100 * tensor).detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    for divergence in DIVERGENCES:
        loss = linear_fusion_loss(low[0], low[1], batch, 0.5, 0.5, "ghost", divergence)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(loss, low))


def test_prompts_without_labels_are_not_trained_on():
    _, batch = full_batch(6, 1, 7, 15, 4)
    batch["next_ids"][:, :3] = -100
    hidden, weight, _ = head((1, 7), 15, 4, 6)
    loss = linear_fusion_loss(hidden, weight, batch, 0.4)
    assert (gradients(loss, (hidden,))[0][:, :3] == 0).all()
    answers = {name: value[:, 3:] for name, value in batch.items()}
    torch.testing.assert_close(loss, linear_fusion_loss(hidden[:, 3:], weight, answers, 0.4))


def test_only_asked_gradients_are_made():
    _, batch = full_batch(6, 1, 7, 15, 4)
    hidden, weight, _ = head((1, 7), 15, 4, 6)
    loss = linear_fusion_loss(hidden, weight.detach(), batch)
    torch.testing.assert_close(
        gradients(loss, (hidden,)),
        gradients(linear_fusion_loss(hidden, weight, batch), (hidden,)),
    )
    with torch.no_grad():
        assert linear_fusion_loss(hidden, weight, batch) == loss


def test_the_weights_take_the_gradient_over_without_a_copy(monkeypatch):
    """Its only owner when backward ends: [V, H] may be the largest tensor of the step."""
    _, batch = full_batch(6, 1, 7, 15, 4)
    hidden, weight, _ = head((1, 7), 15, 4, 6)
    made = []
    add = linear_loss_module._add_product

    def remember(sums, gradient, inputs):
        made.append(sums.data_ptr())
        add(sums, gradient, inputs)

    monkeypatch.setattr(linear_loss_module, "_add_product", remember)
    linear_fusion_loss(hidden, weight, batch).backward()
    assert set(made) == {weight.grad.data_ptr()}


def test_tensors_that_do_not_fit():
    _, batch = full_batch(1, 1, 2, 5, 2)
    hidden, weight, bias = head((1, 2), 5, 4, 0)
    with pytest.raises(IncompatibleError, match="next_ids"):
        linear_fusion_loss(hidden[:, :1], weight, batch)
    with pytest.raises(IncompatibleError, match=r"\(1, 2, 4\) do not fit a head of shape \(5, 3\)"):
        linear_fusion_loss(hidden, weight[:, :3], batch)
    with pytest.raises(IncompatibleError, match=r"bias of shape \(4,\)"):
        linear_fusion_loss(hidden, weight, batch, bias=bias[:4])
    batch["next_ids"][0, 0] = 4
    with pytest.raises(IncompatibleError, match="ids 0 to 3"):
        linear_fusion_loss(hidden, weight[:4], batch, 1.0)
    for softcap in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="softcap"):
            linear_fusion_loss(hidden, weight, batch, softcap=softcap)
    with pytest.raises(IncompatibleError, match="float16"):
        linear_fusion_loss(hidden.half(), weight.half(), batch)
