"""Seconds to open a fused dataset of 15,000 shards, in the forms and from the storages there are.

The dataset has the documents of 15,000 shards (manifest, plan, receipts, metadata), written by the
classes that fusing uses, and shards of 2,048 positions with one entry each, so that it fits on a
laptop; equal files are hard links. Each opening is the first one of a process that has imported
what it needs. S3 is moto's server on loopback.

    OMP_NUM_THREADS=1 python benchmarks/opening.py WORK
    OMP_NUM_THREADS=1 python benchmarks/opening.py WORK --shards 1000

Figures of the last run stand in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fusestore.fuse.choices import KIND_NAMES
from fusestore.fuse.folder import metadata_files
from fusestore.fuse.layout import fused_arrays, shared_arrays
from fusestore.fuse.manifest import (
    FusedManifest,
    FusedReceipt,
    FusionPlan,
    ShardTotals,
    SourceDigests,
    SourceTotals,
)
from fusestore.fuse.recipe import Recipe
from fusestore.store.arrays import array_metadata, encode_shard, group_metadata
from fusestore.store.file_listing import FileListing
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part

ROWS = 2_048
"""Positions of a shard: of the shared form it has one chunk."""

TURNS = 5

FORMS = {
    "mapped, local form": ("local", "mapped"),
    "streamed, local form from a folder": ("local", "stream"),
    "streamed, shared form from a folder": ("shared", "stream"),
    "streamed, shared form from S3": ("shared", "s3"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path, help="folder for the dataset")
    parser.add_argument("--shards", type=int, default=15_000)
    parser.add_argument("--opener", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.opener:
        reader, place = options.opener
        print(json.dumps(open_once(reader, place, options.work)))
        return
    folder = options.work / f"opening-{options.shards}"
    if not (folder / "shared" / "manifest.json").exists():
        write(folder, options.shards)
    for form in ("local", "shared"):
        size = (folder / form / "manifest.json").stat().st_size
        print(f"{form} form: a manifest of {size / 1e6:.1f} MB")
    with S3(folder) as url:
        for title, (form, reader) in FORMS.items():
            place = f"{url}/{form}" if reader == "s3" else str(folder / form)
            command = [sys.executable, __file__, str(options.work), "--opener", reader, place]
            turns = [json.loads(subprocess.check_output(command)) for _ in range(TURNS)]
            wall, busy, again, busy_again = map(statistics.median, zip(*turns, strict=True))
            print(
                f"{title}: {wall:.3f} s ({busy:.3f} of the processor), "
                f"again {again:.3f} s ({busy_again:.3f})",
                flush=True,
            )


def write(folder: Path, shards: int) -> None:
    """Both forms. Files are not synced: nothing here has to survive a crash."""
    num_tokens = shards * ROWS
    recipe = Recipe.parse(
        {
            "corpus": "synthetic",
            "split": "train",
            "target": "0" * 64,
            "sources": [{"cache": "synthetic"}],
            "top_k": 1,
            "window_length": 1_024,
            "packing": "stream",
            "rows_per_shard": ROWS,
        }
    )
    digests = SourceDigests(
        cache="synthetic",
        cache_digest="0" * 64,
        vocabulary_map_digest=None,
        alignment_digest=None,
    )
    plan = FusionPlan(
        recipe=recipe,
        corpus_digest="0" * 64,
        inputs=(digests,),
        target_cache_digest=None,
        vocab_size=49_152,
        sampled=False,
        num_tokens=num_tokens,
        num_documents=1,
        tokens_digest="0" * 64,
        documents_digest="0" * 64,
    )
    sizes = (num_tokens, 1, ROWS)
    local = {**metadata_files(plan), "fingerprint.json": plan.to_bytes()}
    manifest = FusedManifest(
        plan=plan,
        plan_digest=plan.digest,
        recipe_digest=recipe.digest,
        num_tokens=num_tokens,
        num_documents=1,
        num_windows=num_tokens // 1_024,
        kinds={},
        sources=(),
        num_bytes=0,
        files=FileListing.of(write_shards(folder / "local", plan, fused_arrays(*sizes), local)),
    )
    (folder / "local" / "manifest.json").write_bytes(manifest.to_bytes())
    metadata = {f"{a.name}/zarr.json": array_metadata(a) for a in shared_arrays(*sizes)}
    small = {
        **metadata,
        "zarr.json": group_metadata({"plan_digest": plan.digest}),
        "fingerprint.json": plan.to_bytes(),
        "local/manifest.json": manifest.to_bytes(),
    }
    files = write_shards(folder / "shared", plan, shared_arrays(*sizes), small)
    for shard in range(shards):
        # As packing copies them.
        path = receipt_path(shard_part(shard))
        link_file(folder / "shared" / "local" / path, folder / "local" / path)
        files[f"local/{path}"] = manifest.files[path]
    shared = manifest.model_copy(update={"form": "shared", "files": FileListing.of(files)})
    (folder / "shared" / "manifest.json").write_bytes(shared.to_bytes())


def write_shards(
    folder: Path, plan: FusionPlan, arrays: Any, small: dict[str, bytes]
) -> dict[str, FileRecord]:
    """The files of a form but its manifest, all shards with one content."""
    records = {}
    for path, data in small.items():
        write_file(folder / path, data)
        records[path] = FileRecord.of(data)
    contents = {}
    for array in arrays:
        shape = (ROWS, *array.shape[1:])
        contents[array.name] = encode_shard(array, 0, np.ones(shape, array.dtype))
    of_content = {name: FileRecord.of(data) for name, data in contents.items()}
    counts = [0] * len(KIND_NAMES)
    counts[1] = ROWS
    totals = ShardTotals(kinds=tuple(counts), sources=(SourceTotals(),))
    for shard in range(arrays[0].num_files):
        files = {}
        for array in arrays:
            path = array.file_name(shard)
            if shard:
                link_file(folder / path, folder / array.file_name(0))
            else:
                write_file(folder / path, contents[array.name])
            files[path] = of_content[array.name]
        settings = {
            "part": shard_part(shard),
            "start": shard * ROWS,
            "stop": (shard + 1) * ROWS,
            "fingerprint_digest": plan.digest,
            "files": files,
        }
        is_local = arrays[0].codec == "raw"
        receipt = (
            FusedReceipt(**settings, content=totals) if is_local else Receipt(**settings)
        ).to_bytes()
        write_file(folder / receipt_path(shard_part(shard)), receipt)
        records |= files
        records[receipt_path(shard_part(shard))] = FileRecord.of(receipt)
    return records


def write_file(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def link_file(path: Path, content: Path) -> None:
    try:
        path.hardlink_to(content)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(content)


class S3:
    """moto's server, which holds the documents of the shared form: what opening may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        import boto3
        from moto.server import ThreadedMotoServer

        # Requests are not shown.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = ThreadedMotoServer(port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client("s3")
        client.create_bucket(Bucket="opening")
        shared = self.folder / "shared"
        for path in (shared / "manifest.json", *shared.glob("*/zarr.json")):
            key = f"shared/{path.relative_to(shared)}"
            client.put_object(Bucket="opening", Key=key, Body=path.read_bytes())
        return "s3://opening"

    def __exit__(self, *_: object) -> None:
        self.server.stop()


def open_once(reader: str, place: str, work: Path) -> list[float]:
    """Seconds of the first opening of this process, on the clock and of its processor; again."""
    from fusestore.data import FusedDataset, StreamingFusedDataset

    cache = work / "stream"
    shutil.rmtree(cache, ignore_errors=True)
    if reader == "s3":
        # The client of S3 is imported at the first use.
        import obstore.store  # noqa: F401
    seconds = []
    for _ in range(2):
        began, busy = time.perf_counter(), time.process_time()
        if reader == "mapped":
            FusedDataset(place)
        else:
            StreamingFusedDataset(place, cache_dir=cache)
        seconds += [time.perf_counter() - began, time.process_time() - busy]
    shutil.rmtree(cache, ignore_errors=True)
    return seconds


if __name__ == "__main__":
    main()
