"""One order for any number of workers and ranks, resumed anywhere; with real processes."""

import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

import fusestore as fs
from fusestore.data import (
    BatchOrder,
    FusedDataset,
    StreamingFusedDataset,
    StreamingLoader,
    collate,
)
from fusestore.errors import IncompatibleError, InvalidInputError
from tests.helpers.started_ranks import start_ranks
from tests.helpers.whole_dataset import plain, windows_of, write_dataset

NUM_WINDOWS = 21

# The order must hold for more workers than this machine has cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "store" / "fused" / "demo"
    write_dataset(path, num_tokens=20 * 8 + 3, window_length=8, rows_per_shard=40)
    return path


def stream(folder, **options):
    return StreamingFusedDataset(folder, **{"seed": 5, "shuffle_span": 6, **options})


def windows(batches):
    return [batch["window"].tolist() for batch in batches]


def flat(batches):
    return [window for batch in windows(batches) for window in batch]


def test_an_epoch_is_every_window_once_in_the_order(folder):
    dataset = stream(folder)
    assert len(dataset) == NUM_WINDOWS
    expected = windows_of(folder)
    for epoch in range(3):
        order = dataset.order.windows(epoch).tolist()
        assert sorted(order) == list(range(NUM_WINDOWS))
        assert [plain(sample) for sample in dataset] == [expected[window] for window in order]
    assert dataset.state_dict()["epoch"] == 3
    dataset.set_epoch(1)
    assert [int(sample["window"]) for sample in dataset] == dataset.order.windows(1).tolist()
    assert fs.StreamingFusedDataset is StreamingFusedDataset


def test_without_workers_any_loader_can_resume(folder):
    order = stream(folder).order.windows(0).tolist()
    dataset = stream(folder)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
    for number, batch in enumerate(loader, 1):
        assert batch["window"].tolist() == order[(number - 1) * 4 : number * 4]
        if number == 3:
            break
    state = json.loads(json.dumps(dataset.state_dict()))
    assert (state["epoch"], state["position"]) == (0, 12)
    resumed = stream(folder)
    resumed.load_state_dict(state)
    assert flat(DataLoader(resumed, batch_size=2, collate_fn=collate)) == order[12:]
    # Going on without any state is going on, too.
    assert flat(loader) == order[12:]


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_make_the_same_batches(folder, method):
    alone = [
        {name: value.tolist() for name, value in batch.items()}
        for batch in StreamingLoader(stream(folder), 4)
    ]
    assert [len(batch["window"]) for batch in alone] == [4, 4, 4, 4, 4, 1]
    for workers in (1, 2, 4):
        loader = StreamingLoader(
            stream(folder), 4, num_workers=workers, multiprocessing_context=method
        )
        assert [{name: value.tolist() for name, value in batch.items()} for batch in loader] == (
            alone
        )
        assert loader.state_dict()["epoch"] == 1
        if method == "spawn" and workers == 2:
            break


@pytest.mark.slow
def test_a_run_may_stop_behind_every_batch_and_go_on_with_other_workers(folder):
    order = stream(folder).order
    epochs = [order.windows(epoch).tolist() for epoch in range(2)]
    for stop_behind in range(1, 7):
        state, seen = None, []
        # Two resumes within an epoch where there is room for them, then to the end of the next.
        for workers, stop in ((1, stop_behind), (2, stop_behind), (4, None), (0, None)):
            loader = StreamingLoader(stream(folder), 4, num_workers=workers)
            if state is not None:
                loader.load_state_dict(state)
            if loader.state_dict()["epoch"] == 2:
                break
            for number, batch in enumerate(loader, 1):
                seen += batch["window"].tolist()
                state = json.loads(json.dumps(loader.state_dict()))
                if number == stop:
                    break
        assert seen[:NUM_WINDOWS] == epochs[0]
        assert seen[NUM_WINDOWS:] == epochs[1][: len(seen) - NUM_WINDOWS]
        assert len(seen) >= 2 * NUM_WINDOWS - 4 * stop_behind or len(seen) == 2 * NUM_WINDOWS


def test_a_loader_counts_what_was_given_out_and_not_what_was_read_ahead(folder):
    order = stream(folder).order.windows(0).tolist()
    loader = StreamingLoader(stream(folder), 2, num_workers=2, prefetch_factor=4)
    batches = iter(loader)
    assert loader.state_dict()["position"] == 0
    next(batches), next(batches)
    assert loader.state_dict()["position"] == 4
    del batches
    assert flat(loader) == order[4:]
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)
    assert len(loader) == 11


@pytest.mark.parametrize("world_size", [2, 3, 4, 30])
def test_ranks_share_one_order_and_make_equally_many_steps(folder, world_size):
    order = stream(folder).order.windows(0).tolist()
    ranks = [
        list(StreamingLoader(stream(folder, rank=rank, world_size=world_size), 2))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    together = []
    for step in zip(*map(windows, ranks), strict=True):
        assert len({len(batch) for batch in step}) == 1
        together += [window for turn in zip(*step, strict=True) for window in turn]
    fillers = -NUM_WINDOWS % world_size
    assert together == order + [-1] * fillers
    assert fillers < world_size


def test_a_filler_teaches_nothing(folder):
    world_size = NUM_WINDOWS + 1
    (batch,) = StreamingLoader(
        stream(folder, rank=NUM_WINDOWS, world_size=world_size), 1, num_workers=0
    )
    assert batch["window"].tolist() == [-1]
    assert not batch["fused_mask"].any()
    assert batch["next_ids"].tolist() == [[-100]]
    logits = torch.randn(1, 1, 100, requires_grad=True)
    loss = fs.losses.fusion_loss(logits, batch)
    loss.loss.backward() if hasattr(loss, "loss") else loss.backward()
    assert not logits.grad.any()


def test_ranks_may_change_between_stop_and_resume(folder):
    order = stream(folder).order.windows(0).tolist()
    for before, after in ((1, 2), (2, 1), (2, 4), (4, 3)):
        states, seen = [], []
        for rank in range(before):
            loader = StreamingLoader(stream(folder, rank=rank, world_size=before), 2)
            batches = iter(loader)
            seen.append(next(batches)["window"].tolist())
            states.append(loader.state_dict())
        assert all(state == states[0] for state in states)
        together = [window for turn in zip(*seen, strict=True) for window in turn]
        rest = []
        for rank in range(after):
            loader = StreamingLoader(stream(folder, rank=rank, world_size=after), 3)
            loader.load_state_dict(states[0])
            rest.append(flat(loader))
        together += [window for turn in zip(*rest, strict=True) for window in turn]
        assert [window for window in together if window >= 0] == order


SCRIPT = """
import json, os, sys
import torch, torch.distributed
from fusestore.data import StreamingFusedDataset, StreamingLoader

folder, workers, method, stop, state = sys.argv[1:]
if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ["RANK"] = "no use"  # what counts is torch.distributed, in spawned workers too
    stream = StreamingFusedDataset(folder, seed=5, shuffle_span=6)
    loader = StreamingLoader(
        stream, 2, num_workers=int(workers), multiprocessing_context=method or None
    )
    if state:
        loader.load_state_dict(json.loads(state))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    steps = []
    for number, batch in enumerate(loader, 1):
        model(torch.ones(len(batch["window"]), 1)).sum().backward()  # waits for the other ranks
        steps.append(batch["window"].tolist())
        if number == int(stop):
            break
    every = [None] * world_size
    torch.distributed.all_gather_object(every, (steps, loader.state_dict()))
    if rank == 0:
        print(json.dumps(every))
    # The model holds the process group, whose threads may free tensors, and need the interpreter
    # for that, until the group ends.
    del model
    torch.distributed.destroy_process_group()
"""


def run_ranks(tmp_path, folder, world_size, workers=0, method="", stop=0, state=None):
    """What every rank got, and the state they all ended with."""
    script = tmp_path / "ranks.py"
    script.write_text(SCRIPT)
    arguments = [folder, workers, method, stop, "" if state is None else json.dumps(state)]
    processes = start_ranks([script, *arguments], world_size)
    answers = [process.communicate(timeout=200) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    every = json.loads(answers[0][0])
    states = [state for _, state in every]
    assert all(state == states[0] for state in states)
    return [steps for steps, _ in every], states[0]


def in_turns(ranks):
    """One order out of what the ranks got step by step, without fillers."""
    together = []
    for step in zip(*ranks, strict=True):
        together += [window for turn in zip(*step, strict=True) for window in turn]
    return [window for window in together if window >= 0]


@pytest.mark.slow
def test_processes_of_torch_distributed_follow_one_order_and_end_together(folder, tmp_path):
    """21 windows in steps of 4: the last step has one window for two ranks that wait for it."""
    order = stream(folder).order.windows(0).tolist()
    ranks, state = run_ranks(tmp_path, folder, 2)
    assert in_turns(ranks) == order
    assert (state["epoch"], state["position"]) == (1, 0)
    first, state = run_ranks(tmp_path, folder, 2, workers=2, stop=2)
    assert in_turns(first) == order[:8]
    alone, later = run_ranks(tmp_path, folder, 1, workers=1, stop=3, state=state)
    assert in_turns(alone) == order[8:14]
    rest, _ = run_ranks(tmp_path, folder, 2, workers=2, method="spawn", state=later)
    assert in_turns(rest) == order[14:]


def test_a_state_of_something_else_is_refused(folder, tmp_path):
    write_dataset(tmp_path / "x", num_tokens=163, window_length=8, rows_per_shard=40, seed=1)
    state = stream(folder).state_dict()
    with pytest.raises(IncompatibleError, match="another fused dataset"):
        stream(tmp_path / "x").load_state_dict(state)
    with pytest.raises(IncompatibleError, match=r"another seed.*5.*6"):
        stream(folder, seed=6).load_state_dict(state)
    with pytest.raises(IncompatibleError, match="another shuffle_span"):
        stream(folder, shuffle_span=7).load_state_dict(state)
    own = stream(folder)
    for wrong in (
        {},
        [],
        {**state, "position": 21},
        {**state, "position": -1},
        {**state, "epoch": True},
        {**state, "position": 1.0},
        {**state, "more": 1},
    ):
        with pytest.raises(InvalidInputError, match="Not the state of a stream"):
            own.load_state_dict(wrong)
    assert own.state_dict() == state


def test_what_would_change_order_or_state_is_refused(folder):
    batches = iter(DataLoader(stream(folder), batch_size=2, num_workers=2, collate_fn=collate))
    with pytest.raises(InvalidInputError, match="StreamingLoader"):
        next(batches)
    # The error holds a cycle, and the garbage collector would end the workers out of order.
    batches._shutdown_workers()  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match="drop_last"):
        StreamingLoader(stream(folder), 2, drop_last=True)
    with pytest.raises(InvalidInputError, match="the stream's is 4"):
        StreamingLoader(stream(folder, batch_size=4), 2)
    for options in ({"batch_size": 0}, {"rank": 1}, {"rank": 2, "world_size": 2}, {"seed": -1}):
        with pytest.raises(InvalidInputError):
            stream(folder, **options)
    with pytest.raises(InvalidInputError):
        stream(folder).set_epoch(-1)


def test_a_plain_loader_with_workers_is_told_epoch_and_batch_size(folder):
    dataset = stream(folder, batch_size=4)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=collate)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert flat(loader) == dataset.order.windows(epoch).tolist()


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_persistent_workers_begin_where_the_stream_was_set_to(folder, method):
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": method}
    dataset = stream(folder, batch_size=4)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate, **options)
    for epoch in (0, 1, 2, 5, 0):
        dataset.set_epoch(epoch)
        assert flat(loader) == dataset.order.windows(epoch).tolist()
    dataset.load_state_dict({**dataset.state_dict(), "epoch": 3, "position": 8})
    assert flat(loader) == dataset.order.windows(3).tolist()[8:]


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_loader_with_persistent_workers_has_the_same_state(folder, method):
    epochs = [stream(folder).order.windows(epoch).tolist() for epoch in range(4)]
    options = {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": method}
    loader = StreamingLoader(stream(folder), 4, **options)
    assert flat(loader) == epochs[0]
    iterator = loader._iterator
    seen = []
    for batch in loader:
        seen += batch["window"].tolist()
        if len(seen) == 8:
            break
    state = json.loads(json.dumps(loader.state_dict()))
    assert (state["epoch"], state["position"]) == (1, 8)
    assert seen + flat(loader) == epochs[1]
    assert flat(loader) == epochs[2]
    assert loader.state_dict()["epoch"] == 3
    assert loader._iterator is iterator
    loader.load_state_dict(state)
    assert flat(loader) == epochs[1][8:]
    other = StreamingLoader(stream(folder), 2)
    other.load_state_dict(state)
    assert flat(other) == epochs[1][8:]


def test_persistent_workers_and_the_order_of_a_mapped_dataset(folder):
    dataset = FusedDataset(folder)
    order = BatchOrder(dataset, 4, seed=5, epoch=0)
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    for epoch in range(3):
        order.set_epoch(epoch)
        assert flat(loader) == dataset.order(5, epoch).tolist()


def test_a_stream_is_pickled_with_its_rank(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    content = pickle.dumps(stream(folder))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    copy = pickle.loads(content)  # noqa: S301
    assert copy.place() == (1, 2)
    assert len(copy) == 11
