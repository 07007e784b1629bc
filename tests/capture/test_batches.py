"""How documents are divided into batches: pure functions of their lengths."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.capture.batches import Limits, limits_on, plan_batches

BATCHINGS = ("one row", "rows", "padded", "one length", "one document")
ACCELERATOR = limits_on("cuda")


def falling(lengths):
    return np.sort(np.array(lengths, np.int64))[::-1].copy()


def cost(lengths, bounds, launch):
    """Padded tokens and launches of batches of neighbors."""
    return sum(
        (stop - start) * int(lengths[start]) + launch for start, stop in itertools.pairwise(bounds)
    )


def waste(batches):
    """The share of padding."""
    batches = list(batches)
    size = sum(batch.layout.size for batch in batches)
    return 1 - sum(int(batch.layout.lengths.sum()) for batch in batches) / size


def web_lengths(seed, sigma=1.0, total=262_144):
    """Of a web corpus: log-normal, median 400, at most 4,096; one shard."""
    rng = np.random.default_rng(seed)
    lengths = np.exp(np.log(400) + sigma * rng.standard_normal(2_000)).round().clip(1, 4_096)
    count = int(np.searchsorted(np.cumsum(lengths), total)) + 1
    return falling(lengths[:count])


@given(
    lengths=st.lists(st.integers(1, 60), max_size=80).map(falling),
    batching=st.sampled_from(BATCHINGS),
    limits=st.builds(
        Limits,
        tokens=st.integers(1, 200),
        launch=st.integers(0, 40),
        documents=st.none() | st.integers(1, 9),
        switch=st.none() | st.integers(0, 60),
    ),
)
def test_every_document_runs_once_within_the_limits(lengths, batching, limits):
    batches = list(plan_batches(lengths, batching, limits))
    seen = np.concatenate([[], *(batch.documents for batch in batches)])
    assert sorted(seen.tolist()) == list(range(len(lengths)))
    for documents, layout in batches:
        assert layout.lengths.tolist() == lengths[documents].tolist()
        assert layout.rows == layout.row.max() + 1
        assert layout.width == (layout.start + layout.lengths).max()
        slots = layout.slots()
        assert len(np.unique(slots)) == len(slots) == layout.lengths.sum()
        assert layout.size > slots.max()
        if limits.documents is None:
            assert layout.size <= limits.tokens or len(documents) == 1
        else:
            assert len(documents) <= limits.documents
        if limits.switch is not None:
            assert len({bool(length > limits.switch) for length in layout.lengths}) == 1
        if batching not in ("one row", "rows"):
            assert not layout.is_packed
        if batching == "one row":
            assert layout.size == layout.lengths.sum()
        if batching == "one length":
            assert len(set(layout.lengths.tolist())) == 1
        if batching == "one document":
            assert len(documents) == 1


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9).map(falling),
    tokens=st.integers(1, 90),
    launch=st.integers(0, 20),
)
def test_buckets_cost_the_least(lengths, tokens, launch):
    n = len(lengths)
    costs = []
    for cuts in itertools.product([False, True], repeat=n - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), n]
        pairs = list(itertools.pairwise(bounds))
        if all(
            stop - start == 1 or (stop - start) * lengths[start] <= tokens for start, stop in pairs
        ):
            costs.append(cost(lengths, bounds, launch))
    batches = list(plan_batches(lengths, "padded", Limits(tokens, launch)))
    bounds = [0, *(int(batch.documents[-1]) + 1 for batch in batches)]
    assert cost(lengths, bounds, launch) == min(costs)


@pytest.mark.parametrize("sigma", [0.8, 1.0, 1.2])
def test_little_of_a_web_corpus_is_padding(sigma):
    assert ACCELERATOR.tokens == 32_768
    for seed in range(5):
        lengths = web_lengths(seed, sigma)
        padded = list(plan_batches(lengths, "padded", ACCELERATOR))
        assert waste(padded) <= 0.03
        assert len(padded) <= 60
        packed = list(plan_batches(lengths, "rows", ACCELERATOR))
        assert waste(packed) <= 0.01
        assert len(packed) <= 10
        one_row = list(plan_batches(lengths, "one row", ACCELERATOR))
        assert waste(one_row) == 0
        assert len(one_row) <= 10


def test_many_short_documents_are_planned_in_no_time():
    """The work is not quadratic: a shard of a million documents would take minutes."""
    lengths = falling(np.random.default_rng(0).integers(1, 40, 200_000))
    for batching in ("padded", "rows", "one row"):
        assert sum(1 for _ in plan_batches(lengths, batching, ACCELERATOR)) > 100


def test_a_packed_batch_is_as_wide_as_its_longest_document():
    lengths = falling([2_000, 1_500, 1_200, 900, 700, 500, 300, 100])
    (batch,) = plan_batches(lengths, "rows", Limits(8_000, 0))
    layout = batch.layout
    assert (layout.rows, layout.width) == (4, 2_000)
    rows = [layout.lengths[layout.row == row].tolist() for row in range(4)]
    assert rows == [[2_000], [1_500, 500], [1_200, 700, 100], [900, 300]]
