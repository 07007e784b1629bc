"""Selection, by compiled loops and by tensor operations, against a slow float64 version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.cache.rule import Rule
from fusestore.capture.cpu import draw_on_cpu, top_k_on_cpu
from fusestore.capture.device import draw_on_device, top_k_on_device
from fusestore.capture.sampling import tally, uniforms
from fusestore.capture.selection import Selection, cut_to_nucleus, select

TOP_K = [top_k_on_cpu, top_k_on_device]
DRAW = [draw_on_cpu, draw_on_device]


def softmax(logits):
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logprobs, np.exp(logprobs)


def reference(logits, labels, k):
    """Log-softmax, a full stable sort, and the mass of what was not kept, all in float64."""
    logprobs, _ = softmax(logits.astype(np.float64))
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    top = np.take_along_axis(logprobs, order[:, :k], axis=-1)
    rest = np.take_along_axis(logprobs, order[:, k:], axis=-1)
    tail = np.logaddexp.reduce(rest, axis=-1, initial=-np.inf)
    return order[:, :k], top, tail, logprobs[np.arange(len(labels)), labels]


@st.composite
def cases(draw):
    rows = draw(st.integers(1, 5))
    vocab_size = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 700, 5000])))
    k = draw(st.integers(1, min(vocab_size, 130)))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    shift = draw(st.sampled_from([0.0, -20.0, 900.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = (rng.standard_normal((rows, vocab_size)) * scale + shift).astype(np.float32)
    if draw(st.booleans()):
        # Ties, also between −0 and 0.
        logits = np.round(logits)
    if draw(st.booleans()) and vocab_size > 1:
        logits[:, rng.integers(0, vocab_size)] = -np.inf
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    positions = rng.permutation(rows)[: draw(st.integers(1, rows))]
    labels = rng.integers(0, vocab_size, len(positions))
    return torch.from_numpy(logits).to(dtype), positions, labels, k


@pytest.mark.parametrize("top_k", TOP_K)
@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_top_k_equals_float64_reference(top_k, case):
    logits, positions, labels, k = case
    exact = logits.double().numpy()[positions]
    got = Selection(*top_k(logits, torch.from_numpy(positions), torch.from_numpy(labels), k))
    ids, top, tail, label = reference(exact, labels, k)
    assert got.finite.all()
    # To the id: among equal logits the lower one comes first.
    np.testing.assert_array_equal(got.ids.numpy(), ids)
    assert got.ids.dtype == torch.int32
    np.testing.assert_allclose(got.logprobs.numpy(), top, atol=2e-6, rtol=1e-6)
    # Entries 87 nats below the peak are 0 in float32; what they add to a tail is lost.
    seen = tail > -60
    np.testing.assert_allclose(got.tail.numpy()[seen], tail[seen], atol=2e-6, rtol=1e-6)
    assert (got.tail.numpy()[~seen] < -55).all()
    np.testing.assert_allclose(got.label_logprob.numpy(), label, atol=2e-6, rtol=1e-6)
    total = np.exp(got.logprobs.double().numpy()).sum(-1) + np.exp(got.tail.double().numpy())
    np.testing.assert_allclose(total, 1.0, atol=2e-6)


@pytest.mark.parametrize("top_k", TOP_K)
def test_small_tail_keeps_its_precision(top_k):
    logits = torch.zeros(1, 1001)
    logits[0, 0] = 40.0
    tail = top_k(logits, torch.tensor([0]), torch.tensor([0]), 1)[2].item()
    assert abs(tail - (np.log(1000.0) - 40.0)) < 1e-5


@pytest.mark.parametrize("top_k", TOP_K)
def test_equal_logits_are_kept_by_id(top_k):
    ids = top_k(torch.ones(1, 300), torch.tensor([0]), torch.tensor([0]), 70)[0]
    assert ids[0].tolist() == list(range(70))


NOT_FINITE = torch.zeros(5, 130)
NOT_FINITE[1, 2] = torch.nan
NOT_FINITE[2, 0] = torch.inf
NOT_FINITE[3] = -torch.inf
NOT_FINITE[4] = torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["top_k", "draw"])
@pytest.mark.parametrize("where", ["cpu", "device"])
def test_marks_rows_that_are_no_distribution(where, name, dtype):
    logits = NOT_FINITE.to(dtype)
    positions, labels = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    if name == "top_k":
        finite = TOP_K[where == "device"](logits, positions, labels, 2)[4]
    else:
        finite = DRAW[where == "device"](logits, positions, labels, np.full((5, 3), 0.5))[2]
    assert finite.tolist() == [True, False, False, False, False]


@settings(max_examples=100, deadline=None)
@given(case=cases(), top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999]))
def test_top_p_keeps_as_few_entries_as_reach_the_mass(case, top_p):
    logits, positions, labels, k = case
    exact = logits.double().numpy()[positions]
    got = select(
        Rule("top-p", k, top_p=top_p),
        logits,
        torch.from_numpy(positions),
        torch.from_numpy(labels),
        np.arange(len(positions)),
    )
    ids, top, tail, label = reference(exact, labels, k)
    for row in range(len(ids)):
        reached = np.cumsum(np.exp(top[row]))
        count = int((got.logprobs[row] > -torch.inf).sum())
        assert 1 <= count <= k
        # As few as suffice; rounding decides where it is close.
        assert count == 1 or reached[count - 2] < top_p + 1e-6
        assert count == k or reached[count - 1] > top_p - 1e-6
        np.testing.assert_array_equal(got.ids[row, :count].numpy(), ids[row, :count])
        assert not got.ids[row, count:].any()
        np.testing.assert_allclose(got.logprobs[row, :count], top[row, :count], atol=2e-6)
        outside = np.logaddexp.reduce([tail[row], *top[row, count:]])
        if outside > -60:
            assert got.tail[row].item() == pytest.approx(outside, abs=3e-6)
    np.testing.assert_allclose(got.label_logprob.numpy(), label, atol=2e-6, rtol=1e-6)


def test_the_nucleus_of_a_row_that_does_not_reach_it_is_the_row():
    got = Selection(*top_k_on_cpu(torch.zeros(1, 100), torch.tensor([0]), torch.tensor([0]), 8))
    cut = cut_to_nucleus(got, 0.9)
    assert torch.equal(cut.logprobs, got.logprobs)
    assert torch.equal(cut.tail, got.tail)


@pytest.mark.parametrize("draw", DRAW)
@settings(max_examples=200, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_draws_lie_where_the_cumulated_distribution_passes_the_points(draw, case, seed):
    logits, positions, labels, draws = case
    _, probabilities = softmax(logits.double().numpy()[positions])
    points = uniforms(seed, np.arange(len(positions)) + 7, draws)
    ids, label_logprob, finite = draw(
        logits, torch.from_numpy(positions), torch.from_numpy(labels), points
    )
    assert finite.all()
    ids = ids.numpy()
    until = np.cumsum(probabilities, axis=1)
    before = until - probabilities
    # Float32 exponentials move the steps of the cumulated distribution a little.
    assert (np.take_along_axis(before, ids, 1) <= points + 1e-6).all()
    assert (np.take_along_axis(until, ids, 1) >= points - 1e-6).all()
    assert (np.take_along_axis(probabilities, ids, 1) > 0).all()
    assert (np.diff(ids, axis=1) >= 0).all()
    logprobs, _ = softmax(logits.double().numpy()[positions])
    label = logprobs[np.arange(len(labels)), labels]
    np.testing.assert_allclose(label_logprob.numpy(), label, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("vocab_size", [3, 512, 513, 2000])
def test_no_draw_falls_on_an_impossible_token(draw, vocab_size):
    """Also not at the very ends, where rounding would push it off."""
    logits = torch.full((1, vocab_size), -torch.inf)
    logits[0, vocab_size // 2] = 0.0
    points = np.array([[0.0, 0.5, 1 - 2.0**-53]])
    ids = draw(logits, torch.tensor([0]), torch.tensor([vocab_size // 2]), points)[0]
    assert ids.tolist() == [[vocab_size // 2] * 3]


def test_both_ways_of_drawing_agree():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy((rng.standard_normal((200, 3000)) * 3).astype(np.float32))
    positions, labels = torch.arange(200), torch.zeros(200, dtype=torch.int64)
    points = uniforms(5, np.arange(200), 50)
    one, other = (draw(logits, positions, labels, points)[0] for draw in DRAW)
    # A point within rounding of a step may fall to either side.
    assert (one != other).float().mean() < 1e-3


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    draws=st.integers(1, 9),
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=8),
)
def test_points_of_a_row_depend_on_seed_and_row_alone(seed, draws, rows):
    rows = np.array([*rows, rows[0], rows[0] + 1, rows[0] + 2], np.int64)
    points = uniforms(seed, rows, draws)
    assert points.shape == (len(rows), draws)
    assert ((points >= 0) & (points < 1)).all()
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(points[index], uniforms(seed, np.array([row]), draws)[0])
    assert not np.array_equal(points, uniforms(seed ^ 1, rows, draws))


def test_points_are_uniform_and_those_of_rows_differ():
    points = uniforms(3, np.arange(20_000), 4)
    assert len(np.unique(points)) == points.size
    counts = np.histogram(points, bins=20, range=(0, 1))[0]
    # Chi-square with 19 degrees of freedom: 99.99 % lie below 51.
    assert ((counts - points.size / 20) ** 2 / (points.size / 20)).sum() < 51


def test_no_points_for_no_rows():
    assert uniforms(0, np.empty(0, np.int64), 3).shape == (0, 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), min_size=1, max_size=5))
def test_tally_counts(drawn):
    drawn = np.sort(np.array(drawn, np.int32), axis=1)
    ids, logprobs = tally(torch.from_numpy(drawn))
    for row in range(len(drawn)):
        values, counts = np.unique(drawn[row], return_counts=True)
        order = np.lexsort((values, -counts))
        assert ids[row].tolist() == values[order].tolist() + [0] * (7 - len(values))
        with np.errstate(divide="ignore"):
            expected = np.log(np.pad(counts[order], (0, 7 - len(values))) / 7)
        np.testing.assert_array_equal(logprobs[row], expected.astype(np.float32))


def dense(ids, logprobs, vocab_size):
    """Sparse rows as float64 [n, V]."""
    rows = np.zeros((len(ids), vocab_size))
    np.add.at(rows, (np.arange(len(ids))[:, None], ids), np.exp(logprobs.astype(np.float64)))
    return rows


def test_samples_are_unbiased():
    """Over 20,000 rows of one distribution the mean of the estimates is the distribution."""
    count, vocab_size, draws = 20_000, 60, 12
    rng = np.random.default_rng(1)
    logits = torch.from_numpy((rng.standard_normal((1, vocab_size)) * 2).astype(np.float32))
    _, expected = softmax(logits.double().numpy())
    got = select(
        Rule("sampled", draws, seed=11),
        logits,
        torch.zeros(count, dtype=torch.int64),
        torch.zeros(count, dtype=torch.int64),
        np.arange(count),
    )
    estimates = dense(got.ids.numpy(), got.logprobs.numpy(), vocab_size)
    np.testing.assert_allclose(estimates.sum(1), 1.0, atol=1e-6)
    assert torch.isneginf(got.tail).all()
    deviation = np.sqrt(expected[0] * (1 - expected[0]) / (draws * count))
    assert (np.abs(estimates.mean(0) - expected[0]) < 5 * deviation).all()
