"""Reading windows: against a plain memory map and other loaders, and streaming against the link.

First part: windows of one fused dataset (k = 32, 1,024 tokens) in one random order, in batches of 8
asked for by index, from files that lie in memory: as samples, each by itself, and stacked to one
batch, as training takes them. Every side has the same content and gives the same arrays, checked,
in a process of its own with one thread; they read in turns, medians of the turns. Second part: an
epoch of each form from an HTTP server in a process of its own that sends at a fixed rate, and from
moto's S3 server, against getting the same objects with as many connections and throwing them away;
in turns, as samples whose pages are looked at, and as collated batches.

    pip install datasets litdata mosaicml-streaming
    OMP_NUM_THREADS=1 python benchmarks/loader.py            # `… streaming`: the second part alone

Peers that are not installed are left out. Figures of the last run stand in docs/loading.md.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import itertools
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.config
import numpy as np
import requests
import torch

from fusestore.data import FusedDataset, StreamingFusedDataset, StreamingLoader
from fusestore.fetch.download import CONNECTIONS, Download
from fusestore.fetch.layout import ShardLayout
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shared import pack_fused
from fusestore.storage.arrays import array_metadata, encode_shard
from fusestore.storage.publish import publish
from fusestore.storage.shards import FileRecord
from fusestore.storage.urls import Location

K = 32
WINDOW = 1_024
SHARD = 65_536
WINDOWS = 512
STREAMED_SHARDS = 48
STREAMED_TURNS = 7
BATCH = 8
TURNS = 60
RATES = (100e6, 250e6)
RETRIES = {"max_attempts": 20, "mode": "standard"}

Arrays = dict[str, np.ndarray]
Read = Callable[[Sequence[int]], list[dict[str, Any]]]
ReadBatch = Callable[[Sequence[int]], dict[str, Any]]
Side = tuple[Read, ReadBatch]
TurnOf = Callable[[str, int, int], float]
Get = Callable[[str], int]

NAMES = {
    "input_ids": "input_ids",
    "next_ids": "next_ids",
    "ids": "fused_ids",
    "logprobs": "fused_logprobs",
    "tail": "fused_tail",
    "kind": "fused_mask",
}


def main() -> None:
    torch.set_num_threads(1)
    if "streaming" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            windows_per_second(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        streaming(Path(folder))


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


def streaming(folder: Path) -> None:
    write_dataset(folder / "local", make_arrays(STREAMED_SHARDS * SHARD))
    pack_fused(Location.parse(folder / "local"), Location.parse(folder / "shared"))
    for form in ("shared", "local"):
        seconds = decoding_seconds(folder / form)
        print(f"{form} form: a shard is read, verified and decoded by one core in {seconds:.3f} s")
    for form, rate in itertools.product(("shared", "local"), RATES):
        with served(folder / form, rate) as url:
            name = f"{form} form, link of {rate / 1e6:,.0f} MB/s"
            against_the_link(name, url, folder / form, http_get(url))
    for form in ("shared", "local"):
        with bucket(folder / form, form) as (url, get):
            against_the_link(f"{form} form, moto's S3 server", url, folder / form, get)


def against_the_link(name: str, url: str, folder: Path, get: Get) -> None:
    """Downloading and streaming the dataset of `folder` in turns."""
    raw, samples, batches, first, shard = [], [], [], [], []
    cache = folder.with_name("cache")
    for _ in range(STREAMED_TURNS):
        have_memory_at_hand()
        found, one_shard = download_all(get, folder)
        raw.append(found)
        shard.append(one_shard)
        for rates, collated in ((samples, False), (batches, True)):
            have_memory_at_hand()
            found, waited = stream_all(url, folder, cache, batches=collated)
            rates.append(found)
            if not collated:
                first.append(waited)
            shutil.rmtree(cache)
    fetched, *streamed = map(statistics.median, (raw, samples, batches))
    print(
        f"{name}: downloaded at {fetched / 1e6:,.0f} MB/s; streamed "
        + ", ".join(
            f"as {kind} at {rate / 1e6:,.0f} MB/s, ratio {rate / fetched:.2f}"
            for kind, rate in zip(("samples", "batches"), streamed, strict=True)
        )
        + f"; one shard arrives in {statistics.median(shard):.2f} s, "
        f"the first sample {statistics.median(first):.2f} s after the stream is opened",
        flush=True,
    )


def have_memory_at_hand() -> None:
    """See that this machine has as much memory as an epoch takes on its disk's cache, and more.

    A virtual machine may have given what was freed back to its host, and then gets it again page by
    page when it is written to: here 4 us each, as long as everything else that a stream does.
    """
    np.ones(1_500_000_000, np.uint8)


def decoding_seconds(folder: Path) -> float:
    """What lies between a shard's arrival and its use."""
    manifest = FusedManifest.load(Location.parse(folder / "manifest.json"))
    download, layout = Download(Location.parse(folder), manifest), ShardLayout.of(manifest)
    found = []
    for shard in range(STREAMED_SHARDS):
        content = np.zeros(layout.num_bytes, np.uint8)
        began = time.perf_counter()
        download.fetch(shard, content)
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def objects(folder: Path) -> list[list[str]]:
    """What a stream fetches, shard by shard."""
    manifest = FusedManifest.load(Location.parse(folder / "manifest.json"))
    arrays = fused_arrays(manifest.num_tokens, K, SHARD)
    return [
        [array.file_name(shard) for array in arrays if array.name in NAMES]
        for shard in range(arrays[0].num_files)
    ]


def http_get(url: str) -> Get:
    sessions = threading.local()

    def get(name: str) -> int:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
        return len(sessions.own.get(f"{url}/{name}").content)

    return get


def download_all(get: Get, folder: Path) -> tuple[float, float]:
    """Bytes per second of getting every object, and seconds until the first shard is there."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        began = time.perf_counter()
        listed = objects(folder)
        sum(pool.map(get, listed[0]))
        one_shard = time.perf_counter() - began
        began = time.perf_counter()
        num_bytes = sum(pool.map(get, [name for names in listed for name in names]))
        return num_bytes / (time.perf_counter() - began), one_shard


def stream_all(url: str, folder: Path, cache: Path, *, batches: bool) -> tuple[float, float]:
    """Bytes per second from the first sample, or batch, to the end, and seconds until the first."""
    stream = StreamingFusedDataset(url, cache_dir=cache, shuffle_span=WINDOWS // 4)
    per_shard = [sum((folder / name).stat().st_size for name in names) for names in objects(folder)]
    began = time.perf_counter()
    read = iter(StreamingLoader(stream, BATCH) if batches else stream)
    next(read)
    first = time.perf_counter()
    there = sum(path.stat().st_size > 0 for path in (cache / "stream").glob("*/0*"))
    for sample in read:
        if not batches:
            # A sample is a map of memory; here each of its pages is looked at.
            for name in ("fused_ids", "fused_logprobs"):
                sample[name].view(-1)[:: 4096 // 4].sum()
    num_bytes = sum(per_shard) * (1 - there / len(per_shard))
    return num_bytes / (time.perf_counter() - first), first - began


@contextlib.contextmanager
def served(folder: Path, rate: float) -> Iterator[str]:
    """A server in a process of its own that sends at most `rate` bytes per second."""
    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    process = context.Process(target=serve, args=(str(folder), rate, port), daemon=True)
    process.start()
    while port.value == 0:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port.value}"
    process.terminate()
    process.join()


@contextlib.contextmanager
def bucket(folder: Path, name: str) -> Iterator[tuple[str, Get]]:
    """A bucket with the folder's files, in a server in a process of its own; and boto3's GET."""
    import boto3

    # One port: an open filesystem keeps the address it was made with.
    port = int(os.environ.get("AWS_ENDPOINT_URL", ":0").rsplit(":", 1)[1]) or free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        client = boto3.client(
            "s3", config=botocore.config.Config(max_pool_connections=CONNECTIONS, retries=RETRIES)
        )
        client.create_bucket(Bucket=name)
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), name, path.relative_to(folder).as_posix())

        def get(key: str) -> int:
            return len(client.get_object(Bucket=name, Key=key)["Body"].read())

        yield f"s3://{name}", get
    finally:
        server.terminate()
        server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve(folder: str, rate: float, port: Any) -> None:
    lock = threading.Lock()
    free_at = 0.0

    def wait_for_the_link(num_bytes: int) -> None:
        nonlocal free_at
        with lock:
            free_at = max(free_at, time.monotonic()) + num_bytes / rate
            until = free_at
        time.sleep(max(0.0, until - time.monotonic()))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # As servers of files do: otherwise a small file waits 40 ms for its header's receipt.
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = Path(folder) / self.path.lstrip("/")
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            start, stop = (int(match[1]), min(int(match[2]) + 1, size)) if match else (0, size)
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            with path.open("rb") as file:
                while start < stop:
                    count = min(2**17, stop - start)
                    wait_for_the_link(count)
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, count)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.value = server.server_port
    server.serve_forever()


def make_arrays(num_tokens: int) -> Arrays:
    """Random rows as projection leaves them: from the grid of caches, then normalised."""
    rng = np.random.default_rng(0)
    block = min(num_tokens, SHARD)
    steps = rng.exponential(0.35, (block, K)).cumsum(axis=1)
    logprobs = -np.round(steps * 16) / 16
    total = np.log(np.exp(logprobs).sum(axis=1) + np.exp(-3.0))
    logprobs = (logprobs - total[:, None]).astype(np.float32)
    one = {
        "input_ids": rng.zipf(1.3, block).astype(np.int32) % 49_152,
        "next_ids": rng.zipf(1.3, block).astype(np.int32) % 49_152,
        "ids": (rng.zipf(1.3, (block, K)) % 49_152).astype(np.int32),
        "logprobs": logprobs,
        "tail": (-3.0 - total).astype(np.float32),
        "kind": np.ones(block, np.uint8),
    }
    repeats = -(-num_tokens // block)
    return {
        name: np.tile(values, (repeats, *[1] * (values.ndim - 1)))[:num_tokens]
        for name, values in one.items()
    }


def write_dataset(folder: Path, arrays: Arrays) -> None:
    """The local form, as `fusestore fuse` writes it."""
    num_tokens = len(arrays["input_ids"])
    recipe = Recipe.parse(
        {
            "corpus": "synthetic",
            "split": "train",
            "target": "0" * 64,
            "sources": [{"cache": "synthetic"}],
            "top_k": K,
            "window_length": WINDOW,
            "rows_per_shard": SHARD,
        }
    )
    plan = FusionPlan(
        recipe=recipe,
        corpus_digest="0" * 64,
        inputs=(),
        target_cache_digest=None,
        vocab_size=49_152,
        sampled=False,
        num_tokens=num_tokens,
        num_documents=1,
        tokens_digest="0" * 64,
        documents_digest="0" * 64,
    )
    files = {"recipe.json": plan.to_bytes()}
    whole = {
        **arrays,
        "source": np.zeros(num_tokens, np.int16),
        "document": np.zeros(num_tokens, np.int32),
    }
    records = {"recipe.json": FileRecord.of(files["recipe.json"])}
    publish(Location.parse(folder / "recipe.json"), files["recipe.json"])
    for array in fused_arrays(num_tokens, K, SHARD):
        publish(Location.parse(folder / f"{array.name}/zarr.json"), array_metadata(array))
        for shard in range(array.num_files):
            data = encode_shard(array, shard, whole[array.name][slice(*array.rows_of(shard))])
            publish(Location.parse(folder / array.file_name(shard)), data)
            records[array.file_name(shard)] = FileRecord.of(data)
    FusedManifest(
        plan=plan,
        plan_digest=plan.digest,
        recipe_digest=recipe.digest,
        num_tokens=num_tokens,
        num_documents=1,
        num_windows=-(-num_tokens // WINDOW),
        kinds={},
        sources=(),
        num_bytes=sum(record.num_bytes for record in records.values()),
        files=records,
    ).save(Location.parse(folder / "manifest.json"))


if __name__ == "__main__":
    main()
