"""Reading windows: against a plain memory map and other loaders.

Windows of one fused dataset (k = 32, 1,024 tokens) in one random order, in batches of 8 asked for
by index, from files that lie in memory: as samples, each by itself, and stacked to one batch, as
training takes them. Every side has the same content and gives the same arrays, checked, in a
process of its own with one thread; they read in turns, medians of the turns.

    pip install datasets litdata mosaicml-streaming
    OMP_NUM_THREADS=1 python benchmarks/loader.py

Peers that are not installed are left out. Figures of the last run stand in docs/loading.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fused_content import NAMES, WINDOW, Arrays, make_arrays, write_dataset

from fusestore.data import FusedDataset
from fusestore.data.windows import Windows

WINDOWS = 512
BATCH = 8
TURNS = 60

Read = Callable[[Sequence[int]], list[dict[str, Any]]]
ReadBatch = Callable[[Sequence[int]], dict[str, Any]]
Side = tuple[Read, ReadBatch]
TurnOf = Callable[[str, int, int], float]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        windows_per_second(Path(folder))


def windows_per_second(folder: Path) -> None:
    titles = {}
    for side in SIDES:
        try:
            ours = side in ("fusestore", "np.memmap")
            titles[side] = side if ours else f"{side} {importlib.metadata.version(side)}"
        except importlib.metadata.PackageNotFoundError:
            print(f"{side} is not installed")
    with contextlib.ExitStack() as stack:
        sides = {
            title: stack.enter_context(beside(side, folder / side))
            for side, title in titles.items()
        }
        for what in ("samples", "batch"):
            rates = in_turns(sides, what)
            ours = statistics.median(rates["fusestore"])
            print({"samples": "as separate samples", "batch": "stacked to batches"}[what])
            for title, found in rates.items():
                median = statistics.median(found)
                ratio = f"fusestore is {ours / median:6.2f} times that"
                print(f"  {title:28} {median:10,.0f} windows/s   {ratio}")


def in_turns(sides: dict[str, TurnOf], what: str) -> dict[str, list[float]]:
    """Windows per second of each side, turn by turn."""
    rates: dict[str, list[float]] = {title: [] for title in sides}
    for turn in range(TURNS):
        for title, turn_of in sides.items():
            # Short turns, so that what else the machine does falls on all alike. A slow side
            # has fewer and shorter ones.
            slow = bool(rates[title]) and rates[title][0] < 200
            if not slow or turn % 10 == 0:
                rates[title].append(turn_of(what, turn, 1 if slow else 16))
    return rates


@contextlib.contextmanager
def beside(side: str, folder: Path) -> Iterator[TurnOf]:
    """A side in a process of its own: what one loads or keeps is nobody else's burden.

    Yields:
        Given "samples" or "batch", the turn, and a number of batches, reads these there; windows
        per second.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=read_when_asked, args=(side, str(folder), there), daemon=True)
    process.start()
    there.close()

    def turn_of(what: str, turn: int, num_batches: int) -> float:
        here.send((what, turn, num_batches))
        return float(here.recv())

    try:
        here.recv()  # It is made, and checked.
        yield turn_of
    finally:
        here.close()
        process.join()


def read_when_asked(side: str, folder: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    arrays = make_arrays(WINDOWS * WINDOW)
    samples, batch = SIDES[side](Path(folder), arrays)
    order = np.random.default_rng(1).permutation(WINDOWS)
    batches = [order[i : i + BATCH].tolist() for i in range(0, WINDOWS, BATCH)]
    check(side, arrays, samples(batches[0]), batches[0])
    stacked = batch(batches[0])
    parts = [{name: values[i] for name, values in stacked.items()} for i in range(BATCH)]
    check(side, arrays, parts, batches[0])
    del arrays, stacked, parts
    gc.collect()
    pipe.send(None)
    while True:
        try:
            what, turn, num_batches = pipe.recv()
        except EOFError:
            return
        read: Callable[[Sequence[int]], object] = batch if what == "batch" else samples
        # The first batch of a turn finds other sides' data in the processor's caches.
        asked = [batches[(turn * num_batches + i) % len(batches)] for i in range(num_batches)]
        read(asked[-1])
        began = time.perf_counter()
        for windows in asked:
            read(windows)
        pipe.send(num_batches * BATCH / (time.perf_counter() - began))


def our_side(folder: Path, arrays: Arrays) -> Side:
    write_dataset(folder, arrays)
    dataset = FusedDataset(folder)

    def batch(windows: Sequence[int]) -> dict[str, Any]:
        together = dataset.__getitems__(windows)
        assert isinstance(together, Windows)
        return {field: together.stacked(field, 0) for field in NAMES.values()}

    return lambda windows: list(dataset.__getitems__(windows)), batch


def stacks(samples: Read, stack: Callable[[list[Any]], Any]) -> ReadBatch:
    """Batches of a side that gives samples."""

    def batch(windows: Sequence[int]) -> dict[str, Any]:
        found = samples(windows)
        return {name: stack([sample[name] for sample in found]) for name in found[0]}

    return batch


def check(name: str, arrays: Arrays, samples: list[dict[str, Any]], windows: list[int]) -> None:
    for window, sample in zip(windows, samples, strict=True):
        rows = slice(window * WINDOW, (window + 1) * WINDOW)
        for array, field in NAMES.items():
            found = np.asarray(sample[field] if field in sample else sample[array])
            wanted = arrays[array][rows]
            if found.dtype == bool:
                wanted = wanted != 0
            if not np.array_equal(found.reshape(wanted.shape), wanted):
                raise SystemExit(f"{name} reads {array} of window {window} wrongly")


def memmap_side(folder: Path, arrays: Arrays) -> Side:
    folder.mkdir()
    maps = {}
    for name, values in arrays.items():
        values.tofile(folder / name)
        maps[name] = np.memmap(folder / name, values.dtype, mode="r", shape=values.shape)

    def read(windows: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {name: np.array(values[i * WINDOW : (i + 1) * WINDOW]) for name, values in maps.items()}
            for i in windows
        ]

    def batch(windows: Sequence[int]) -> dict[str, Any]:
        return {
            name: np.stack([values[i * WINDOW : (i + 1) * WINDOW] for i in windows])
            for name, values in maps.items()
        }

    return read, batch


def samples_of(arrays: Arrays) -> Iterator[Arrays]:
    for window in range(WINDOWS):
        rows = slice(window * WINDOW, (window + 1) * WINDOW)
        yield {name: values[rows] for name, values in arrays.items()}


def datasets_side(folder: Path, arrays: Arrays) -> Side:
    """Arrow lists, memory-mapped, in NumPy's format."""
    import datasets
    import pyarrow as pa

    datasets.disable_progress_bars()
    columns = {}
    for name, values in arrays.items():
        column = pa.array(values.reshape(-1))
        for length in reversed((WINDOW, *values.shape[1:])):
            offsets = np.arange(0, len(column) + 1, length, dtype=np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), column)
        columns[name] = column
    table = pa.table(columns)
    with pa.OSFile(str(folder), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    loaded = datasets.Dataset.from_file(str(folder)).with_format("numpy")

    def read(windows: Sequence[int]) -> list[dict[str, Any]]:
        batch = loaded[list(windows)]
        return [
            {name: stacked(values[i]) for name, values in batch.items()}
            for i in range(len(windows))
        ]

    def batch(windows: Sequence[int]) -> dict[str, Any]:
        return {name: stacked(values) for name, values in loaded[list(windows)].items()}

    return read, batch


def stacked(value: np.ndarray) -> np.ndarray:
    """Lists of lists come as arrays of arrays where their lengths could differ."""
    return np.stack([stacked(each) for each in value]) if value.dtype == object else value


def litdata_side(folder: Path, arrays: Arrays) -> Side:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for index, sample in enumerate(samples_of(arrays)):
        writer.add_item(index, {name: torch.from_numpy(v) for name, v in sample.items()})
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder))

    def read(windows: Sequence[int]) -> list[dict[str, Any]]:
        return [dataset[i] for i in windows]

    return read, stacks(read, torch.stack)


def mds_side(folder: Path, arrays: Arrays) -> Side:
    from streaming import MDSWriter
    from streaming.base.local import LocalDataset

    columns = {
        name: f"ndarray:{values.dtype}:{','.join(map(str, (WINDOW, *values.shape[1:])))}"
        for name, values in arrays.items()
    }
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sample in samples_of(arrays):
            writer.write({name: np.ascontiguousarray(values) for name, values in sample.items()})
    dataset = LocalDataset(str(folder))

    def read(windows: Sequence[int]) -> list[dict[str, Any]]:
        return [dataset[i] for i in windows]

    return read, stacks(read, np.stack)


SIDES = {
    "fusestore": our_side,
    "np.memmap": memmap_side,
    "datasets": datasets_side,
    "litdata": litdata_side,
    "mosaicml-streaming": mds_side,
}


if __name__ == "__main__":
    main()
