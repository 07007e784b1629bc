"""Mixtures, mapped and streamed: each dataset's windows in its own order, in proportion."""

import json
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from fusestore.data import (
    BatchOrder,
    FusedDataset,
    FusedMixture,
    StreamingFusedDataset,
    StreamingLoader,
    StreamingMixture,
    collate,
)
from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.storage.location import Location
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.whole_dataset import plain, share, windows_of, write_dataset

# The order must hold for more workers than this machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SIZES = (21, 8, 5)
WEIGHTS = (0.2, 0.5, 0.3)
FIRSTS = (0, 21, 29)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("mixture")
    for number, size in enumerate(SIZES):
        write_dataset(
            root / f"d{number}",
            num_tokens=size * 8 - number,
            window_length=8,
            rows_per_shard=40,
            seed=number,
        )
    return [root / f"d{number}" for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def expected(folders):
    """All samples, by their number in the mixture."""
    samples = [sample for folder in folders for sample in windows_of(folder)]
    return [{**sample, "window": number} for number, sample in enumerate(samples)]


def mixture(folders, weights=WEIGHTS):
    return FusedMixture([FusedDataset(folder) for folder in folders], weights)


def streams(folders, weights=WEIGHTS, **options):
    opened = [StreamingFusedDataset(folder, seed=5, shuffle_span=6) for folder in folders]
    return StreamingMixture(opened, weights, **options)


def flat(batches):
    return [window for batch in batches for window in batch["window"].tolist()]


def check_own_orders(windows, own_order):
    """Of each dataset, whole permutations of its own come one after the other."""
    for number, (first, size) in enumerate(zip(FIRSTS, SIZES, strict=True)):
        mine = [window - first for window in windows if first <= window < first + size]
        for epoch in range(-(-len(mine) // size)):
            here = mine[epoch * size : (epoch + 1) * size]
            assert here == own_order(number, epoch)[: len(here)]


def check_proportions(windows):
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    came = Counter()
    for length, window in enumerate(windows, 1):
        came[int(np.searchsorted(FIRSTS, window, side="right")) - 1] += 1
        assert all(abs(came[n] - length * share) < 1 + 1e-9 for n, share in enumerate(shares))


def test_mapped_windows_are_those_of_the_datasets(folders, expected):
    mixed = mixture(folders)
    assert len(mixed) == sum(SIZES)
    assert [plain(mixed[window]) for window in range(len(mixed))] == expected
    assert plain(mixed[-1]) == expected[-1]
    with pytest.raises(IndexError):
        mixed[34]
    first = FusedDataset(folders[0])
    assert (mixed.window_length, mixed.top_k, mixed.vocab_size) == (8, first.top_k, 100)
    assert mixed.describe([22, 0, 33, 23]) == "; ".join(
        FusedDataset(folders[number]).describe(own)
        for number, own in ((1, [1, 2]), (0, [0]), (2, [4]))
    )
    assert mixed.largest_token_id() == max(
        FusedDataset(folder).largest_token_id() for folder in folders
    )


def test_the_mapped_order(folders):
    mixed = mixture(folders)
    orders = [mixed.order(7, epoch).tolist() for epoch in range(4)]
    together = [window for order in orders for window in order]
    check_proportions(together)
    # A dataset's own order is that of the mixture of it alone.
    check_own_orders(
        together,
        lambda number, epoch: FusedMixture([mixed.datasets[number]]).order(7, epoch).tolist(),
    )
    assert mixed.order(8, 0).tolist() != orders[0]
    other = mixture(folders, (1, 1, 1))
    assert other.digest != mixed.digest
    assert mixture(folders, (2, 5, 3)).digest == mixed.digest


def test_without_weights_every_window_comes_once_an_epoch(folders):
    mixed = mixture(folders, None)
    assert mixed.weights == SIZES
    for epoch in range(3):
        assert sorted(mixed.order(1, epoch).tolist()) == list(range(34))
    listed = streams(folders, None)
    for _ in range(2):
        assert sorted(int(sample["window"]) for sample in listed) == list(range(34))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_ranks_follow_the_mixed_order(folders, workers):
    mixed = mixture(folders)
    order = mixed.order(3, 1).tolist()
    ranks = [
        [
            batch["window"].tolist()
            for batch in DataLoader(
                mixed,
                batch_sampler=BatchOrder(mixed, 4, seed=3, epoch=1, rank=rank, world_size=2),
                collate_fn=collate,
                num_workers=workers,
            )
        ]
        for rank in range(2)
    ]
    together = []
    for step in zip(*ranks, strict=True):
        together += [window for turn in zip(*step, strict=True) for window in turn]
    assert together == order
    resumed = BatchOrder(mixed, 4, seed=3, epoch=1, first_batch=2)
    assert [window for batch in resumed for window in batch] == order[8:]


def test_streams_give_the_same_windows_in_the_order_of_each(folders, expected):
    mixed = streams(folders)
    seen = []
    for epoch in range(4):
        assert mixed.state_dict()["epoch"] == epoch
        for sample in mixed:
            assert plain(sample) == expected[int(sample["window"])]
            seen.append(int(sample["window"]))
    check_proportions(seen)
    check_own_orders(
        seen, lambda number, epoch: mixed.streams[number].order.windows(epoch).tolist()
    )


def test_streams_are_fetched_too(folders, expected, tmp_path):
    for number, folder in enumerate(folders):
        share(folder, Location.parse(tmp_path / f"shared{number}"))
    opened = [
        StreamingFusedDataset(
            f"local://{tmp_path}/shared{number}",
            cache_dir=tmp_path / "cache",
            seed=5,
            shuffle_span=6,
        )
        for number in range(len(folders))
    ]
    here = [int(sample["window"]) for sample in streams(folders)]
    for window, sample in zip(here, StreamingMixture(opened, WEIGHTS), strict=True):
        assert plain(sample) == expected[window]


def test_streams_resume_with_other_ranks_workers_and_batch_sizes(folders):
    order = [int(sample["window"]) for sample in streams(folders)]
    state, seen = None, []
    for world_size, batch_size, workers, steps in ((1, 4, 2, 2), (2, 3, 0, 2), (1, 5, 1, None)):
        ranks = []
        for rank in range(world_size):
            mixed = streams(folders, rank=rank, world_size=world_size)
            loader = StreamingLoader(mixed, batch_size, num_workers=workers)
            if state is not None:
                loader.load_state_dict(state)
            batches = []
            for number, batch in enumerate(loader, 1):
                batches.append(batch)
                if number == steps:
                    break
            ranks.append(flat(batches))
        seen += [window for turn in zip(*ranks, strict=True) for window in turn]
        state = json.loads(json.dumps(loader.state_dict()))
    assert seen == order
    assert (state["epoch"], state["position"]) == (1, 0)


def test_a_state_of_another_mixture_is_refused(folders):
    state = streams(folders).state_dict()
    with pytest.raises(IncompatibleError, match=r"other weights.*\[2, 5, 3\].*\[1, 1, 1\]"):
        streams(folders, (1, 1, 1)).load_state_dict(state)
    with pytest.raises(IncompatibleError, match="other datasets"):
        streams(folders[::-1]).load_state_dict(state)
    with pytest.raises(InvalidInputError, match="Not the state"):
        streams(folders).load_state_dict({**state, "position": 34})
    with pytest.raises(InvalidInputError, match="Not the state"):
        StreamingFusedDataset(folders[0]).load_state_dict(state)


def test_what_cannot_be_mixed(folders, tmp_path):
    ours = FusedDataset(folders[0])
    for name, changes, message in (
        ("target", {"target": "9" * 64}, "target's tokenizer"),
        ("window", {"window_length": 9}, "window_length is 8 in the first and 9"),
        ("vocabulary", {"vocab_size": 101}, "number of the target's tokens"),
    ):
        made = write_fused(
            tmp_path / name,
            random_arrays(40),
            **{"window_length": 8, "chunk_rows": 16, **changes},
        )
        with pytest.raises(IncompatibleError, match=message):
            FusedMixture([ours, FusedDataset(made)])
    wide = write_fused(tmp_path / "k", random_arrays(40, k=5), window_length=8, chunk_rows=16)
    with pytest.raises(IncompatibleError, match="top_k is 4 in the first and 5"):
        FusedMixture([ours, FusedDataset(wide)])
    with pytest.raises(InvalidInputError, match="same fused dataset"):
        FusedMixture([ours, FusedDataset(folders[0])])
    with pytest.raises(InvalidInputError, match="at least one"):
        StreamingMixture([])
    with pytest.raises(InvalidInputError, match="same fused dataset"):
        streams([folders[0], folders[0]])


def test_a_limit_must_hold_all_streams(folders, tmp_path):
    shared = []
    for number, folder in enumerate(folders[:2]):
        share(folder, Location.parse(tmp_path / f"shared{number}"))
        shared.append(f"local://{tmp_path}/shared{number}")
    options = {"cache_dir": tmp_path / "cache", "shuffle_span": 2}
    needed = [StreamingFusedDataset(url, **options).needed_bytes for url in shared]
    for limit, enough in ((max(needed), False), (sum(needed), True)):
        opened = [StreamingFusedDataset(url, cache_limit=limit, **options) for url in shared]
        if enough:
            assert len(list(StreamingMixture(opened))) == 29
        else:
            with pytest.raises(InvalidInputError, match="too small for the mixture"):
                StreamingMixture(opened)
