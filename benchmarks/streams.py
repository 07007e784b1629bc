"""Streaming against the link: an epoch of each form, fetched, verified, decoded, written and read.

From an HTTP server that sends at a fixed rate, from moto's S3 server over such a link, and from it
without one, where it takes as much of the processor as it gets; against getting the same objects
with as many connections and throwing them away. Servers and links are processes of their own. In
turns: the objects, the stream as samples whose pages are looked at, and as collated batches.

    OMP_NUM_THREADS=1 python benchmarks/streams.py [--before CHECKOUT] [--shards N] [--turns N]

With `--before`, a folder with another version of this repository, that version's package reads the
same objects, in turns with this one's.

Figures of the last run stand in docs/loading.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from fused_content import NAMES, SHARD, K, make_arrays, write_dataset
from read_stream import have_memory_at_hand
from servers import KEYS, Get, Place, bucket, site

from fusestore.data.shard_cache.download import CONNECTIONS, Download
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.shared import pack_fused
from fusestore.storage.location import Location

SPAN = 128
BATCH = 8

NOW = Path(__file__).parents[1]
READER = Path(__file__).with_name("read_stream.py")

Origin = Callable[[Path, str], AbstractContextManager[Place]]

ORIGINS: dict[str, Origin] = {
    "HTTP, link of 100 MB/s": lambda folder, _: site(folder, 100e6),
    "HTTP, link of 250 MB/s": lambda folder, _: site(folder, 250e6),
    "S3, link of 100 MB/s": lambda folder, name: bucket(folder, name, 100e6),
    "S3 of the same two cores": lambda folder, name: bucket(folder, name, None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="Another version's folder to compare with.")
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"now": Reader(NOW)}
    if arguments.before is not None:
        versions = {"before": Reader(arguments.before), **versions}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "local", make_arrays(arguments.shards * SHARD))
        pack_fused(Location.parse(folder / "local"), Location.parse(folder / "shared"))
        for form in ("shared", "local"):
            seconds = decoding_seconds(folder / form)
            print(f"{form} form: one core reads, verifies and decodes a shard in {seconds:.3f} s")
        for form, (name, origin) in itertools.product(("shared", "local"), ORIGINS.items()):
            with origin(folder / form, form) as place:
                title = f"{form} form, {name}"
                against_the_link(title, place, folder / form, versions, arguments.turns)


class Reader:
    """A process that reads streams by the package of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(READER)],
            env={**os.environ, **KEYS, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(
        self, place: Place, folder: Path, cache: Path, batch: int | None
    ) -> tuple[float, float, float]:
        """See `read_stream.read`."""
        sizes = [sum((folder / file).stat().st_size for file in files) for files in objects(folder)]
        asked = {
            "url": place.url,
            "options": place.options,
            "cache": str(cache),
            "span": SPAN,
            "batch": batch,
            "sizes": sizes,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        rate, first, busy = json.loads(self._process.stdout.readline())
        shutil.rmtree(cache)
        return rate, first, busy


def against_the_link(
    title: str, place: Place, folder: Path, versions: dict[str, Reader], turns: int
) -> None:
    """Downloading and streaming the dataset of `folder` in turns."""
    raw, shard = [], []
    kinds = [(version, batch) for version in versions for batch in (None, BATCH)]
    found: dict[tuple[str, int | None], list[tuple[float, float, float]]] = {k: [] for k in kinds}
    cache = folder.with_name("cache")
    for turn in range(turns):
        have_memory_at_hand()
        rate, one_shard = download_all(place.get, folder)
        raw.append(rate)
        shard.append(one_shard)
        # Whoever comes first has a server that has rested.
        for version, batch in kinds if turn % 2 else reversed(kinds):
            result = versions[version].read(place, folder, cache, batch)
            found[version, batch].append(result)
    fetched = statistics.median(raw)
    print(
        f"{title}: downloaded at {fetched / 1e6:,.0f} MB/s; one shard arrives in "
        f"{statistics.median(shard):.2f} s"
    )
    rates = {}
    for (version, batch), results in found.items():
        rate, first, busy = map(statistics.median, zip(*results, strict=True))
        rates[version, batch] = rate
        print(
            f"    {version}, as {'samples' if batch is None else 'batches'}: "
            f"{rate / 1e6:,.0f} MB/s, {rate / fetched:.2f} of that; the first after {first:.2f} s; "
            f"{busy:.2f} s of the processor",
            flush=True,
        )
    for version, batch in kinds:
        if version == "now" and ("before", batch) in rates:
            ratio = rates[version, batch] / rates["before", batch]
            print(
                f"    now over before, as {'samples' if batch is None else 'batches'}: {ratio:.2f}"
            )


def decoding_seconds(folder: Path) -> float:
    """What lies between a shard's arrival and its use."""
    manifest = FusedManifest.load(Location.parse(folder / "manifest.json"))
    download, layout = Download(Location.parse(folder), manifest), ShardLayout.of(manifest)
    found = []
    for shard in range(len(objects(folder))):
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


if __name__ == "__main__":
    main()
