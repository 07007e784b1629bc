"""The losses over logits against their definition in float64, by hand, and by gradcheck."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.losses import FusionObjective, fusion_loss, fusion_terms, row_losses
from tests.helpers.dense_losses import (
    DIVERGENCES,
    TAILS,
    dense_loss,
    full_batch,
    objectives,
    random_batch,
)


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(2, 12)),
    k=st.integers(1, 12),
    objective=objectives,
    rows_per_piece=st.integers(1, 4),
)
def test_equals_the_definition(seed, shape, k, objective, rows_per_piece):
    batch_size, length, vocab_size = shape
    logits, batch = random_batch(seed, batch_size, length, vocab_size, min(k, vocab_size))
    expected_logits = logits.clone().requires_grad_()
    expected = dense_loss(expected_logits, batch, objective)
    expected.backward()
    logits.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(row_losses.CHUNK_LOGITS, "cpu", rows_per_piece * vocab_size)
        loss = fusion_terms(logits, batch, objective).loss
        (3 * loss).backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(logits.grad, 3 * expected_logits.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence, temperature, tail):
    logits, batch = full_batch(7, 2, 3, 9, 4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: fusion_loss(x, batch, 0.4, temperature, tail, divergence), (logits,)
    )


def hand_batch():
    """One position, five tokens, label 2; P keeps token 2 with 1/2 and token 4 with 1/4."""
    return {
        "next_ids": torch.tensor([[2]]),
        "fused_ids": torch.tensor([[[2, 4, 0]]]),
        "fused_logprobs": torch.tensor([[[math.log(0.5), math.log(0.25), -math.inf]]]),
        "fused_tail": torch.tensor([[math.log(0.25)]]),
        "fused_mask": torch.tensor([[True]]),
    }


def hand_logits():
    """Q = (1, 2, 4, 1, 2) / 10."""
    q = torch.tensor([0.1, 0.2, 0.4, 0.1, 0.2], dtype=torch.float64)
    return q.log()[None, None].requires_grad_()


def test_by_hand_renormalize():
    # CE = −ln 0.4. Kept mass 3/4 becomes (2/3, 1/3): H = −2/3 ln 0.4 − 1/3 ln 0.2.
    logits = hand_logits()
    loss = fusion_loss(logits, hand_batch(), lm_weight=0.9, tail="renormalize")
    lm, fused = -math.log(0.4), -(2 * math.log(0.4) + math.log(0.2)) / 3
    assert loss.item() == pytest.approx(0.9 * lm + 0.1 * fused, rel=1e-6)
    # Gradient: 0.9 (Q − onehot(2)) + 0.1 (Q − P).
    loss.backward()
    expected = [0.1, 0.2, 0.4 - 0.9 - 0.1 * 2 / 3, 0.1, 0.2 - 0.1 / 3]
    torch.testing.assert_close(
        logits.grad[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


def test_by_hand_ghost():
    # The ghost outcome has P = 1/4 against Q(0) + Q(1) + Q(3) = 0.4.
    logits = hand_logits()
    loss = fusion_loss(logits, hand_batch(), lm_weight=0.0, tail="ghost")
    expected = -(0.5 * math.log(0.4) + 0.25 * math.log(0.2) + 0.25 * math.log(0.4))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # Outside the kept ids: Q − Q/0.4 · 1/4 = 3/8 Q; at them Q − P.
    loss.backward()
    torch.testing.assert_close(
        logits.grad[0, 0],
        torch.tensor([0.0375, 0.075, -0.1, 0.0375, -0.05], dtype=torch.float64),
        rtol=1e-6,
        atol=1e-7,
    )


@pytest.mark.parametrize(
    ("divergence", "tail", "expected"),
    [
        # Outcomes 2, 4 and the rest: P = (2, 1, 1) / 4, Q = (4, 2, 4) / 10.
        ("forward_kl", "ghost", 0.5 * math.log(1.25) + 0.25 * math.log(1.25 * 0.625)),
        (
            "reverse_kl",
            "ghost",
            0.4 * math.log(0.8) + 0.2 * math.log(0.8) + 0.4 * math.log(1.6),
        ),
        # Given that the token is 2 or 4 both are (2/3, 1/3).
        ("reverse_kl", "renormalize", 0.0),
        # P = (2/3, 1/3, 0) against Q = (0.4, 0.2, 0.4).
        ("forward_kl", "renormalize", math.log(1 / 0.6)),
        (
            "jensen_shannon",
            "renormalize",
            (math.log(2 / 1.6) + 0.6 * math.log(1.2 / 1.6) + 0.4 * math.log(2)) / 2,
        ),
    ],
)
def test_divergences_by_hand(divergence, tail, expected):
    loss = fusion_loss(hand_logits(), hand_batch(), 0.0, tail=tail, divergence=divergence)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_forward_kl_has_the_gradient_of_cross_entropy():
    logits, batch = full_batch(4, 2, 4, 11, 5)
    for tail in TAILS:
        gradients = []
        for divergence in DIVERGENCES[:2]:
            leaf = logits.clone().requires_grad_()
            fusion_loss(leaf, batch, 0.2, 2.0, tail, divergence).backward()
            gradients.append(leaf.grad)
        assert torch.equal(*gradients)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_equals_the_target_has_no_gradient_under_the_ghost(divergence, temperature):
    """Also at a temperature: outcomes are tempered after the rest was summed, on both sides."""
    logits, batch = full_batch(2, 2, 4, 40, 6)
    logprobs = torch.log_softmax(logits, -1)
    top = logprobs.topk(6)
    batch["fused_ids"], batch["fused_logprobs"] = top.indices, top.values
    batch["fused_tail"] = torch.log1p(-top.values.exp().sum(-1))
    logits.requires_grad_()
    loss = fusion_loss(logits, batch, 0.0, temperature, "ghost", divergence)
    loss.backward()
    assert logits.grad.abs().max() < 1e-14
    if divergence != "cross_entropy":
        assert abs(loss.item()) < 1e-13


def test_temperature_squared_is_a_factor_of_the_fused_term_alone():
    logits, batch = full_batch(9, 1, 4, 12, 5)
    with_factor = fusion_terms(logits, batch, FusionObjective(0.3, temperature=3.0))
    without = fusion_terms(
        logits, batch, FusionObjective(0.3, temperature=3.0, temperature_squared=False)
    )
    torch.testing.assert_close(with_factor.fused, 9 * without.fused)
    assert with_factor.lm == without.lm


def test_terms_and_lm_only_reads_no_fused_field():
    logits, batch = full_batch(3, 2, 4, 11, 3)
    plain = fusion_terms(logits.float(), {"next_ids": batch["next_ids"]}, FusionObjective(1.0))
    expected = torch.nn.functional.cross_entropy(
        logits.float().view(-1, 11), batch["next_ids"].view(-1)
    )
    torch.testing.assert_close(plain.loss, expected)
    assert plain.fused.item() == 0.0
    terms = fusion_terms(logits.float(), batch, FusionObjective(0.25))
    torch.testing.assert_close(terms.loss, 0.25 * terms.lm + 0.75 * terms.fused)
    assert not terms.lm.requires_grad


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_prompts_without_labels_are_not_trained_on(divergence):
    """Loss and gradient are those of the answers alone, whatever the prompt's rows hold."""
    logits, batch = full_batch(6, 1, 7, 15, 4)
    batch["next_ids"][:, :3] = -100
    logits.requires_grad_()
    loss = fusion_loss(logits, batch, 0.4, 2.0, "ghost", divergence)
    loss.backward()
    assert (logits.grad[:, :3] == 0).all()
    assert (logits.grad[:, 3:] != 0).any()
    answers = {name: value[:, 3:] for name, value in batch.items()}
    alone = fusion_loss(logits[:, 3:], answers, 0.4, 2.0, "ghost", divergence)
    torch.testing.assert_close(loss, alone)
    batch["fused_logprobs"][:, :3] = math.nan
    batch["fused_ids"][:, :3] = 10**9
    assert fusion_loss(logits, batch, 0.4, 2.0, "ghost", divergence) == loss


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_logits_are_summed_in_float32(divergence, tail):
    logits, batch = full_batch(11, 2, 6, 40, 8)
    low = logits.bfloat16().requires_grad_()
    high = low.detach().double().requires_grad_()
    objective = FusionObjective(0.5, 1.0, tail, divergence)
    loss = fusion_terms(low, batch, objective).loss
    reference = dense_loss(high, batch, objective)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    reference.backward()
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=8e-3, atol=1e-6)


def test_float16_gradients_are_scaled_before_they_are_rounded():
    """A gradient scaler's factor arrives in time: 1 / 65,536 of 1e−4 would be 0 in float16."""
    logits = torch.zeros(1, 1, 20_000, dtype=torch.float16).requires_grad_()
    loss = fusion_loss(logits, {"next_ids": torch.tensor([[0]])}, 1.0) / 65_536
    (loss * 65_536).backward()
    assert logits.grad[0, 0, 1].item() == pytest.approx(1 / 20_000, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_finite_with_a_peaked_student(divergence, tail, temperature):
    """The student's mass outside the kept ids is e^−600, far below what 1 − Σ kept can show."""
    logits = torch.full((1, 1, 5), -300.0)
    logits[0, 0, 2] = 300.0
    low = logits.bfloat16().requires_grad_()
    high = logits.double().requires_grad_()
    objective = FusionObjective(0.5, temperature, tail, divergence)
    loss = fusion_terms(low, hand_batch(), objective).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(low.grad).all()
    exact = fusion_terms(high, hand_batch(), objective).loss
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=8e-3, atol=1e-6)


def test_the_ghost_is_held_against_mass_that_no_subtraction_shows():
    """At 40 nats 1 − Σ kept is 0 even in float64; −log of the rest is 40 − ln 3 all the same."""
    logits = torch.tensor([[[-40.0, -40.0, 0.0, -40.0, -40.0]]]).requires_grad_()
    batch = hand_batch()
    batch["fused_logprobs"] = torch.tensor([[[math.log(0.5), math.log(0.25), -math.inf]]])
    loss = fusion_loss(logits, batch, 0.0, tail="ghost")
    assert loss.item() == pytest.approx(0.25 * 40 + 0.25 * (40 - math.log(3)), rel=1e-6)


def test_no_positions_gives_zero_and_finite_gradient():
    for divergence in DIVERGENCES:
        logits, batch = random_batch(5, 1, 3, 7, 2)
        batch["next_ids"][:] = -100
        logits.requires_grad_()
        loss = fusion_loss(logits, batch, divergence=divergence)
        loss.backward()
        assert loss.item() == 0.0
        assert (logits.grad == 0).all()


def test_logits_are_left_as_they_are():
    logits, batch = full_batch(5, 2, 3, 7, 2)
    for values in (logits, logits.float()):
        before = values.clone()
        fusion_loss(values, batch, 0.5, 2.0, "ghost")
        assert torch.equal(values, before)


def test_damaged_rows_show_in_the_loss():
    logits, batch = full_batch(5, 2, 3, 7, 2)
    batch["fused_logprobs"][1, 2, 0] = math.nan
    for tail in TAILS:
        for divergence in DIVERGENCES:
            assert fusion_loss(logits, batch, tail=tail, divergence=divergence).isnan()


@pytest.mark.parametrize(
    "options",
    [
        {"lm_weight": 1.5},
        {"lm_weight": math.nan},
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"tail": "drop"},
        {"divergence": "hellinger"},
    ],
)
def test_settings_out_of_range(options):
    logits, batch = full_batch(1, 1, 2, 5, 2)
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        fusion_loss(logits, batch, **options)


def test_shapes_that_do_not_fit():
    logits, batch = full_batch(1, 1, 2, 5, 2)
    with pytest.raises(IncompatibleError, match="next_ids"):
        fusion_loss(logits[:, :1], batch)
    batch["fused_tail"] = batch["fused_tail"][:, :1]
    with pytest.raises(IncompatibleError, match="fused_tail"):
        fusion_loss(logits, batch)


@pytest.mark.parametrize(("name", "wrong"), [("next_ids", 5), ("fused_ids", 5), ("fused_ids", -1)])
def test_ids_that_the_model_does_not_have(name, wrong):
    logits, batch = full_batch(1, 1, 2, 5, 2)
    batch[name].view(-1)[0] = wrong
    batch["fused_logprobs"][:] = -1.0
    with pytest.raises(IncompatibleError, match=rf"{name} holds token id {wrong}.*ids 0 to 4"):
        fusion_loss(logits, batch)
