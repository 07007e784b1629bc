"""`select_top_k` against a slow, obvious float64 version."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.capture.selection import select_top_k


def reference(logits: np.ndarray, labels: np.ndarray, k: int):
    """Log-softmax, a full sort, and the mass of what was not kept, all in float64."""
    logits = logits.astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    top = np.take_along_axis(logprobs, order[:, :k], axis=-1)
    rest = np.take_along_axis(logprobs, order[:, k:], axis=-1)
    with np.errstate(divide="ignore"):
        tail = np.log(np.exp(rest).sum(axis=-1))
    return top, tail, logprobs[np.arange(len(labels)), labels]


@st.composite
def cases(draw):
    rows = draw(st.integers(1, 5))
    vocab_size = draw(st.integers(1, 40))
    k = draw(st.integers(1, vocab_size))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = (rng.standard_normal((rows, vocab_size)) * scale).astype(np.float32)
    if draw(st.booleans()) and vocab_size > 1:
        logits[:, rng.integers(0, vocab_size)] = -np.inf
    return logits, rng.integers(0, vocab_size, rows), k


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_float64_reference(case):
    logits, labels, k = case
    got = select_top_k(torch.from_numpy(logits), torch.from_numpy(labels), k)
    top, tail, label = reference(logits, labels, k)
    np.testing.assert_allclose(got.logprobs.numpy(), top, atol=2e-5, rtol=1e-6)
    np.testing.assert_allclose(np.exp(got.tail.numpy()), np.exp(tail), atol=1e-6)
    np.testing.assert_allclose(got.label_logprob.numpy(), label, atol=2e-5, rtol=1e-6)
    total = np.exp(got.logprobs.numpy().astype(np.float64)).sum(-1) + np.exp(got.tail.numpy())
    np.testing.assert_allclose(total, 1.0, atol=2e-6)
    assert got.finite.all()
    full = logits.astype(np.float64) - np.logaddexp.reduce(
        logits.astype(np.float64), axis=-1, keepdims=True
    )
    own = np.take_along_axis(full, got.ids.numpy(), axis=-1)
    np.testing.assert_allclose(own, top, atol=2e-5, rtol=1e-6)


def test_small_tail_keeps_its_precision():
    logits = torch.zeros(1, 1001)
    logits[0, 0] = 40.0
    tail = select_top_k(logits, torch.tensor([0]), 1).tail.item()
    assert abs(tail - (np.log(1000.0) - 40.0)) < 1e-4


def test_marks_rows_that_are_no_distribution():
    logits = torch.zeros(3, 5)
    logits[1, 2] = torch.nan
    logits[2, 0] = torch.inf
    assert select_top_k(logits, torch.zeros(3, dtype=torch.int64), 2).finite.tolist() == [
        True,
        False,
        False,
    ]
