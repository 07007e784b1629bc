"""Streaming against the link: an epoch of each form, fetched, verified, decoded, written and read.

From an HTTP server that sends at a fixed rate, from moto's S3 server over such a link, and from it
without one, where it takes as much of the processor as it gets; against getting the same objects
with as many connections and throwing them away. Servers and links are processes of their own. In
turns: the objects, the stream as samples whose pages are looked at, and as collated batches.

    OMP_NUM_THREADS=1 python benchmarks/streams.py

Figures of the last run stand in docs/loading.md.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from fused_content import NAMES, SHARD, K, make_arrays, write_dataset
from servers import Get, Place, bucket, site

from fusestore.data import StreamingFusedDataset, StreamingLoader
from fusestore.data.shard_cache.download import CONNECTIONS, Download
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.shared import pack_fused
from fusestore.storage.location import Location

SHARDS = 48
TURNS = 5
SPAN = 128
BATCH = 8


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        streaming(Path(folder))


def streaming(folder: Path) -> None:
    write_dataset(folder / "local", make_arrays(SHARDS * SHARD))
    pack_fused(Location.parse(folder / "local"), Location.parse(folder / "shared"))
    for form in ("shared", "local"):
        seconds = decoding_seconds(folder / form)
        print(f"{form} form: a shard is read, verified and decoded by one core in {seconds:.3f} s")
    origins = {
        "HTTP, link of 100 MB/s": lambda form: site(folder / form, 100e6),
        "HTTP, link of 250 MB/s": lambda form: site(folder / form, 250e6),
        "S3, link of 100 MB/s": lambda form: bucket(folder / form, form, 100e6),
        "S3 of the same two cores": lambda form: bucket(folder / form, form, None),
    }
    for form, (name, origin) in itertools.product(("shared", "local"), origins.items()):
        with origin(form) as place:
            against_the_link(f"{form} form, {name}", place, folder / form)


def against_the_link(name: str, place: Place, folder: Path) -> None:
    """Downloading and streaming the dataset of `folder` in turns."""
    raw, samples, batches, first, shard = [], [], [], [], []
    cache = folder.with_name("cache")
    for _ in range(TURNS):
        have_memory_at_hand()
        found, one_shard = download_all(place.get, folder)
        raw.append(found)
        shard.append(one_shard)
        for rates, collated in ((samples, False), (batches, True)):
            have_memory_at_hand()
            found, waited = stream_all(place, folder, cache, batches=collated)
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
    for shard in range(SHARDS):
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


def stream_all(place: Place, folder: Path, cache: Path, *, batches: bool) -> tuple[float, float]:
    """Bytes per second from the first sample, or batch, to the end, and seconds until the first."""
    stream = StreamingFusedDataset(
        place.url, storage_options=place.options, cache_dir=cache, shuffle_span=SPAN
    )
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


if __name__ == "__main__":
    main()
