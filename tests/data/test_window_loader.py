"""One rank's batches by position: of a dataset, and of a stream."""

import pickle

import pytest

from fusestore.data import BatchOrder, FusedDataset, StreamingFusedDataset, WindowLoader
from fusestore.errors import InvalidInputError
from tests.helpers.whole_dataset import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """13 windows, in shards of 3 windows."""
    path = tmp_path_factory.mktemp("loader") / "store/fused/demo"
    write_dataset(path, num_tokens=12 * 8 + 3, window_length=8, rows_per_shard=24)
    return path


def windows(loader):
    return [batch["window"].tolist() for batch in loader]


def in_turns(ranks):
    """Of all ranks' batches: the windows in the order of positions, without padding."""
    steps = [zip(*step, strict=True) for step in zip(*ranks, strict=True)]
    return [window for step in steps for turn in step for window in turn if window >= 0]


def test_a_datasets_order_is_that_of_batch_order(folder):
    dataset = FusedDataset(folder)
    loader = WindowLoader(dataset, 2, seed=4, rank=1, world_size=2)
    for epoch in range(2):
        order = BatchOrder(dataset, 2, seed=4, epoch=epoch, rank=1, world_size=2)
        assert len(loader) == len(order)
        assert windows(loader) == list(order)
    loader.set_epoch(0)
    order = BatchOrder(dataset, 2, seed=4, epoch=0, rank=1, world_size=2)
    assert windows(loader) == list(order)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_stream_and_an_evaluation(folder, world_size):
    stream = StreamingFusedDataset(folder, seed=5, shuffle_span=6)
    dataset = FusedDataset(folder)

    def ranks(source, **options):
        return [
            WindowLoader(source, 2, rank=rank, world_size=world_size, **options)
            for rank in range(world_size)
        ]

    streams, evaluations = ranks(stream), ranks(dataset, shuffle=False)
    for epoch in range(2):
        found = in_turns([windows(loader) for loader in streams])
        assert found == stream.order.windows(epoch).tolist()
        assert in_turns([windows(loader) for loader in evaluations]) == list(range(13))
    assert stream.state_dict()["position"] == 0


def test_the_epoch_ends_also_where_no_batch_is_asked_for_after_the_last(folder):
    loader = WindowLoader(FusedDataset(folder), 5, seed=4)
    first = windows(loader)
    loader.set_epoch(0)
    batches = iter(loader)
    assert [next(batches)["window"].tolist() for _ in range(len(loader))] == first
    assert windows(loader) != first


def test_a_streams_reader_is_not_pickled(folder):
    loader = WindowLoader(StreamingFusedDataset(folder, seed=5, shuffle_span=6), 2)
    batches = iter(loader)
    next(batches)
    copy = pickle.loads(pickle.dumps(loader.dataset))  # noqa: S301 - our own
    assert len(copy) == 13
    assert copy[(0, 3)]["window"] == loader.dataset[(0, 3)]["window"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_last": True}, "takes no drop_last"),
        ({"rank": 2, "world_size": 2}, "rank=2, world_size=2"),
        ({"rank": 0}, "give both"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_would_change_the_order_is_refused(folder, options, message):
    with pytest.raises(InvalidInputError, match=message):
        WindowLoader(FusedDataset(folder), **options)
