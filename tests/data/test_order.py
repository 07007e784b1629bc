"""The order of windows, and batches cut from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.data.order import BatchOrder, batches_per_epoch, permutation
from fusestore.errors import InvalidInputError


def test_the_order_never_changes():
    assert permutation(10, seed=7, epoch=0).tolist() == PINNED
    assert permutation(10, 7, 1).tolist() != PINNED
    assert permutation(10, 8, 0).tolist() != PINNED


PINNED = [8, 4, 1, 6, 3, 2, 7, 5, 9, 0]


@given(st.integers(0, 300), st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_permutation(num_windows, seed, epoch):
    order = permutation(num_windows, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(num_windows))
    assert np.array_equal(order, permutation(num_windows, seed, epoch))


@given(
    st.integers(1, 60), st.integers(1, 7), st.integers(1, 4), st.integers(0, 5), st.integers(0, 9)
)
def test_ranks_share_one_order(num_windows, batch_size, world_size, seed, first_batch):
    total = batches_per_epoch(num_windows, batch_size, world_size)
    per_rank = [
        list(BatchOrder(num_windows, batch_size, seed=seed, epoch=2, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert {len(batches) for batches in per_rank} == {total}
    assert all(batch for batches in per_rank for batch in batches)
    seen = []
    for step in zip(*per_rank, strict=True):
        together = [0] * sum(len(batch) for batch in step)
        for rank, batch in enumerate(step):
            together[rank::world_size] = batch
        seen += together
    order = permutation(num_windows, seed, 2).tolist()
    assert seen == order[: len(seen)]
    assert len(order) - len(seen) < world_size
    resumed = BatchOrder(
        num_windows, batch_size, seed=seed, epoch=2, first_batch=first_batch, world_size=world_size
    )
    assert list(resumed) == per_rank[0][first_batch:]
    assert len(resumed) == len(per_rank[0][first_batch:])


def test_bad_arguments():
    with pytest.raises(InvalidInputError):
        permutation(3, -1, 0)
    with pytest.raises(InvalidInputError):
        BatchOrder(3, 0, seed=0, epoch=0)
    with pytest.raises(InvalidInputError):
        BatchOrder(3, 1, seed=0, epoch=0, rank=2, world_size=2)
