"""The order of a stream: each window once, never far from its shard's place, the same forever."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.data import StreamOrder
from fusestore.errors import InvalidInputError
from fusestore.fuse.packing import window_starts

even = st.builds(
    StreamOrder,
    digest=st.sampled_from(["a" * 64, "b" * 64]),
    num_tokens=st.integers(1, 400),
    window_length=st.integers(1, 40),
    rows_per_block=st.integers(1, 150),
    seed=st.integers(0, 2**63 - 1),
    span=st.integers(1, 60),
)


@st.composite
def by_documents(draw):
    """Windows as packing `document` cuts them."""
    stream = draw(even)
    lengths = draw(st.lists(st.integers(0, 90), min_size=1, max_size=12).filter(any))
    offsets = np.cumsum([0, *lengths])
    starts = window_starts(offsets, stream.window_length, "document")
    return dataclasses.replace(stream, num_tokens=int(offsets[-1]), starts=starts)


orders = st.one_of(even, by_documents())
epochs = st.integers(0, 9)


def order(**changes):
    settings = {"window_length": 8, "rows_per_block": 32, "seed": 3, "span": 6}
    return StreamOrder(**{"digest": "d" * 64, "num_tokens": 100, **settings, **changes})


def starts_of(stream):
    return np.array([stream.bounds(window)[0] for window in range(stream.num_windows)])


def blocks_of(stream):
    """The plain definition: a window belongs to the block that its first token lies in."""
    return starts_of(stream) // stream.rows_per_block


@given(orders)
def test_windows_follow_each_other(stream):
    bounds = [stream.bounds(window) for window in range(stream.num_windows)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == stream.num_tokens
    assert all(0 < stop - start <= stream.window_length for start, stop in bounds)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))


def test_the_order_never_changes():
    assert order().windows(0).tolist() == PINNED
    for other in (order(digest="e" * 64), order(seed=4), order(span=2)):
        assert other.windows(0).tolist() != PINNED
    assert order().windows(1).tolist() != PINNED


PINNED = [8, 11, 12, 9, 10, 7, 4, 5, 6, 2, 3, 0, 1]


@given(orders, epochs)
def test_every_window_once_an_epoch(stream, epoch):
    windows = stream.windows(epoch)
    assert windows.dtype == np.int64
    assert sorted(windows.tolist()) == list(range(stream.num_windows))
    assert np.array_equal(windows, stream.windows(epoch))


@given(orders, epochs)
def test_blocks_stay_together_but_for_the_span(stream, epoch):
    still = dataclasses.replace(stream, span=1).windows(epoch)
    blocks = blocks_of(stream)[still]
    assert np.count_nonzero(np.diff(blocks)) == len(set(blocks.tolist())) - 1
    for block in set(blocks.tolist()):
        assert np.all(np.diff(still[blocks == block]) == 1)
    # The block order is drawn before windows are mixed, so it does not depend on the span.
    place = np.empty(stream.num_windows, int)
    place[still] = np.arange(stream.num_windows)
    moved = np.abs(place[stream.windows(epoch)] - np.arange(stream.num_windows))
    assert moved.max(initial=0) < stream.span


@given(orders, epochs, st.integers(0, 30))
def test_uses_are_those_of_the_plain_definition(stream, epoch, skipped):
    windows = stream.windows(epoch)[skipped:]
    first, last = stream.uses(windows)
    blocks = blocks_of(stream)[windows].tolist()
    named = sorted(set(blocks_of(stream).tolist()))  # those that no window begins in have no number
    assert len(first) == len(last) == len(named)
    for number, block in enumerate(named):
        using = [at for at, found in enumerate(blocks) if found == block]
        assert first[number] == (using[0] if using else len(windows))
        assert last[number] == (using[-1] if using else -1)


@given(orders, st.integers(1, 150))
def test_shards_are_those_of_the_plain_definition(stream, rows_per_shard):
    low, high = stream.shards(rows_per_shard)
    blocks = blocks_of(stream)
    for number, block in enumerate(sorted(set(blocks.tolist()))):
        windows = np.flatnonzero(blocks == block)
        tokens = np.arange(stream.bounds(windows[0])[0], stream.bounds(windows[-1])[1])
        assert set(range(low[number], high[number] + 1)) == set((tokens // rows_per_shard).tolist())


@settings(max_examples=300)
@given(orders, epochs, st.one_of(st.none(), st.integers(1, 150)))
def test_no_epoch_needs_more_than_the_working_set(stream, epoch, rows_per_shard):
    rows = rows_per_shard or stream.rows_per_block
    first, last = stream.uses(stream.windows(epoch))
    low, high = stream.shards(rows)
    for at in range(stream.num_windows):
        live = np.flatnonzero((first <= at) & (at <= last))
        shards = {shard for block in live for shard in range(low[block], high[block] + 1)}
        assert len(shards) <= stream.working_set(rows)


def test_a_working_set_is_hardly_larger_than_the_span():
    stream = order(num_tokens=64_000, window_length=8, rows_per_block=640, span=800)
    assert stream.working_set(640) == 11  # 800 windows of 80 a shard, and the two at the ends
    assert order(span=1).working_set(32) == 1


def test_an_epoch_begins_with_one_shard():
    """At the default span, and 64 windows a shard, as `fusestore fuse` makes them."""
    stream = order(num_tokens=64 * 65_536, window_length=1024, rows_per_block=65_536, span=1024)
    for epoch in range(20):
        begun = blocks_of(stream)[stream.windows(epoch)]
        assert len(set(begun[:4].tolist())) <= 2
        assert len(set(begun[:64].tolist())) >= 4


def test_bad_arguments():
    for changes in ({"seed": -1}, {"span": 0}, {"span": 2**31}, {"num_tokens": 2**35}):
        with pytest.raises(InvalidInputError):
            order(**{"window_length": 1, **changes})
    with pytest.raises(InvalidInputError):
        order().windows(-1)
