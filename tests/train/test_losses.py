"""fusion_loss against a dense float64 reference, by hand, and by gradcheck."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.capture.sampling import tally, uniforms
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.train import losses
from fusestore.train.losses import fusion_loss, fusion_terms


def dense_reference(logits, batch, lm_weight, temperature, tail):
    """The definition, position by position, over dense distributions; differentiable."""
    vocab_size = logits.shape[-1]
    lm, fused = [], []
    for b in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            row = logits[b, i]
            label = int(batch["next_ids"][b, i])
            if label != -100:
                lm.append(-torch.log_softmax(row, -1)[label])
            kept = [
                (int(t), float(lp))
                for t, lp in zip(
                    batch["fused_ids"][b, i], batch["fused_logprobs"][b, i], strict=True
                )
                if lp > -math.inf
            ]
            if not batch["fused_mask"][b, i] or not kept:
                continue
            p = torch.zeros(vocab_size, dtype=torch.float64)
            for token, logprob in kept:
                p[token] = math.exp(logprob / temperature)
            q = torch.softmax(row / temperature, -1)
            tail_mass = math.exp(float(batch["fused_tail"][b, i]) / temperature)
            if tail == "renormalize" or len(kept) == vocab_size:
                p = p / p.sum()
                cross = -(p * torch.log(q)).sum()
            else:
                total = p.sum() + tail_mass
                others = torch.ones(vocab_size, dtype=torch.bool)
                others[[token for token, _ in kept]] = False
                cross = -(p / total * torch.log(q)).sum()
                if tail_mass > 0:
                    cross = cross - tail_mass / total * torch.log(q[others].sum())
            fused.append(temperature**2 * cross)
    zero = logits.sum() * 0.0
    lm_mean = torch.stack(lm).mean() if lm else zero
    fused_mean = torch.stack(fused).mean() if fused else zero
    return lm_weight * lm_mean + (1 - lm_weight) * fused_mean


def random_batch(seed, batch_size, length, vocab_size, k):
    rng = np.random.default_rng(seed)
    shape = (batch_size, length)
    probs = rng.dirichlet(np.full(k + 1, 0.5), shape)
    with np.errstate(divide="ignore"):
        logprobs = np.log(probs).astype(np.float32)
    unused = rng.random((*shape, k)) < rng.choice([0.0, 0.3])
    ids = np.stack([rng.permutation(vocab_size)[:k] for _ in range(batch_size * length)])
    ids = ids.reshape(*shape, k)
    ids[unused] = 0
    kept = np.where(unused, -np.inf, logprobs[..., :k])
    tail = logprobs[..., k].copy()
    tail[rng.random(shape) < 0.1] = -np.inf
    next_ids = rng.integers(0, vocab_size, shape)
    next_ids[rng.random(shape) < rng.choice([0.0, 0.3, 1.0])] = -100
    batch = {
        "next_ids": torch.from_numpy(next_ids),
        "fused_ids": torch.from_numpy(ids).long(),
        "fused_logprobs": torch.from_numpy(kept.astype(np.float32)),
        "fused_tail": torch.from_numpy(tail),
        "fused_mask": torch.from_numpy(rng.random(shape) < rng.choice([0.0, 0.6, 1.0])),
    }
    logits = torch.from_numpy(rng.normal(0, 2, (*shape, vocab_size)))
    return logits, batch


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(2, 12)),
    k=st.integers(1, 12),
    lm_weight=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    temperature=st.sampled_from([1.0, 0.5, 2.0]),
    tail=st.sampled_from(["renormalize", "ghost"]),
    rows_per_piece=st.integers(1, 4),
)
def test_equals_dense_reference(seed, shape, k, lm_weight, temperature, tail, rows_per_piece):
    batch_size, length, vocab_size = shape
    logits, batch = random_batch(seed, batch_size, length, vocab_size, min(k, vocab_size))
    expected_logits = logits.clone().requires_grad_()
    expected = dense_reference(expected_logits, batch, lm_weight, temperature, tail)
    expected.backward()
    logits.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_PIECE_ELEMENTS", rows_per_piece * vocab_size)
        loss = fusion_loss(logits, batch, lm_weight, temperature, tail)
        (3 * loss).backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(logits.grad, 3 * expected_logits.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tail", ["renormalize", "ghost"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradcheck(tail, temperature):
    logits, batch = random_batch(7, 2, 3, 9, 4)
    batch["fused_mask"][:] = True
    batch["next_ids"] = batch["next_ids"].clamp(min=0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: fusion_loss(x, batch, 0.4, temperature, tail), (logits,), atol=1e-6
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
    loss = fusion_loss(logits, hand_batch(), lm_weight=0.9)
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


def test_terms_and_lm_only_reads_no_fused_field():
    logits, batch = random_batch(3, 2, 4, 11, 3)
    batch["next_ids"] = torch.randint(0, 11, (2, 4))
    plain = fusion_terms(logits.float(), {"next_ids": batch["next_ids"]}, lm_weight=1.0)
    expected = torch.nn.functional.cross_entropy(
        logits.float().view(-1, 11), batch["next_ids"].view(-1)
    )
    torch.testing.assert_close(plain.loss, expected)
    assert plain.fused.item() == 0.0
    terms = fusion_terms(logits.float(), batch, lm_weight=0.25)
    torch.testing.assert_close(terms.loss, 0.25 * terms.lm + 0.75 * terms.fused)
    assert not terms.lm.requires_grad


def test_bfloat16_logits_are_summed_in_float32():
    logits, batch = random_batch(11, 2, 6, 40, 8)
    low = logits.bfloat16().requires_grad_()
    high = low.detach().double().requires_grad_()
    loss = fusion_loss(low, batch, 0.5, 1.0, "ghost")
    reference = dense_reference(high, batch, 0.5, 1.0, "ghost")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    reference.backward()
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(low.grad.double(), high.grad, rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize("tail", ["renormalize", "ghost"])
def test_finite_with_a_peaked_student(tail):
    logits = torch.full((1, 1, 5), -300.0)
    logits[0, 0, 2] = 300.0
    low = logits.bfloat16().requires_grad_()
    loss = fusion_loss(low, hand_batch(), 0.5, 1.0, tail)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(low.grad).all()


def test_no_positions_gives_zero_and_finite_gradient():
    logits, batch = random_batch(5, 1, 3, 7, 2)
    batch["next_ids"][:] = -100
    batch["fused_mask"][:] = False
    logits.requires_grad_()
    loss = fusion_loss(logits, batch)
    loss.backward()
    assert loss.item() == 0.0
    assert (logits.grad == 0).all()


def test_logits_are_left_as_they_are():
    logits, batch = random_batch(5, 2, 3, 7, 2)
    for values in (logits, logits.float()):
        before = values.clone()
        fusion_loss(values, batch, 0.5, 2.0, "ghost")
        assert torch.equal(values, before)


@pytest.mark.parametrize(
    "options",
    [{"lm_weight": 1.5}, {"temperature": 0.0}, {"temperature": math.inf}, {"tail": "drop"}],
)
def test_settings_out_of_range(options):
    logits, batch = random_batch(1, 1, 2, 5, 2)
    with pytest.raises(InvalidInputError):
        fusion_loss(logits, batch, **options)


def test_shapes_that_do_not_fit():
    logits, batch = random_batch(1, 1, 2, 5, 2)
    with pytest.raises(IncompatibleError, match="next_ids"):
        fusion_loss(logits[:, :1], batch)


@pytest.mark.parametrize("tail", ["renormalize", "ghost"])
def test_samples_give_the_loss_and_gradient_of_the_whole_distribution_in_the_mean(tail):
    """Against dense float64, over 20,000 samples of one row (arXiv 2503.16870)."""
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
        "next_ids": torch.full((1, count), -100),
        "fused_ids": ids.long()[None],
        "fused_logprobs": logprobs[None],
        "fused_tail": torch.full((1, count), -torch.inf),
        "fused_mask": torch.ones(1, count, dtype=torch.bool),
    }
    logits = row.detach().expand(1, count, vocab_size).clone().requires_grad_()
    loss = fusion_loss(logits, batch, lm_weight=0.0, tail=tail)
    [gradient] = torch.autograd.grad(loss, logits)
    per_sample = gradient[0] * count
    error = per_sample.std(0) / math.sqrt(count)
    assert ((per_sample.mean(0) - expected_gradient).abs() < 5 * error).all()
    spread = math.sqrt(float((p * torch.log_softmax(row, -1).detach() ** 2).sum()))
    assert abs(loss.item() - expected.item()) < 5 * spread / math.sqrt(draws * count)


def test_the_k_most_likely_alone_are_biased():
    """What the samples are for: the renormalised top k has another gradient, at any sample size."""
    p = torch.tensor([0.5, 0.2, 0.15, 0.15], dtype=torch.float64)
    batch = {
        "next_ids": torch.tensor([[-100]]),
        "fused_ids": torch.tensor([[[0, 1]]]),
        "fused_logprobs": p[:2].log().float()[None, None],
        "fused_tail": p[2:].sum().log().float()[None, None],
        "fused_mask": torch.tensor([[True]]),
    }
    logits = p.log()[None, None].requires_grad_()
    [gradient] = torch.autograd.grad(fusion_loss(logits, batch, lm_weight=0.0), logits)
    assert gradient.abs().max() > 0.1
