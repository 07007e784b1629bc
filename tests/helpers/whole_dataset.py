"""A complete fused dataset of random arrays, with the manifest that fusing would write."""

import numpy as np

from fusestore.data.dataset import FusedDataset
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest, FusedReceipt, FusionPlan, ShardTotals
from fusestore.fuse.packing import window_files, window_starts
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shared import pack_fused
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.arrays import array_metadata, encode_shard, group_metadata
from fusestore.store.receipts import FileRecord, receipt_path, shard_part
from tests.helpers.fused_folder import random_arrays


def write_dataset(
    root, *, num_tokens, window_length, rows_per_shard, k=4, seed=0, packing="stream"
):
    """Write the local form.

    Returns:
        Its folder, and the arrays it holds.
    """
    location = Location.parse(root)
    arrays = random_arrays(num_tokens, k=k, seed=seed)
    recipe = {
        "corpus": "c",
        "split": "train",
        "target": "1" * 64,
        "sources": [{"cache": "a"}],
        "top_k": k,
        "window_length": window_length,
        "rows_per_shard": rows_per_shard,
        "packing": packing,
    }
    plan = FusionPlan(
        recipe=Recipe.parse(recipe),
        corpus_digest="2" * 64,
        inputs=(),
        target_cache_digest=None,
        vocab_size=100,
        sampled=False,
        num_tokens=num_tokens,
        num_documents=1,
        # What tells datasets of other content apart.
        tokens_digest=f"{seed:064x}",
        documents_digest="3" * 64,
    )
    files = {
        "fingerprint.json": plan.to_bytes(),
        "zarr.json": group_metadata({"plan_digest": plan.digest}),
    }
    for array in fused_arrays(num_tokens, k, rows_per_shard):
        files[f"{array.name}/zarr.json"] = array_metadata(array)
        for shard in range(array.num_files):
            rows = slice(*array.rows_of(shard))
            files[array.file_name(shard)] = encode_shard(array, shard, arrays[array.name][rows])
    offsets = np.flatnonzero(np.diff(arrays["document"], prepend=-1)).astype(np.int64)
    starts = window_starts(np.append(offsets, num_tokens), window_length, packing)
    if plan.recipe.has_window_table:
        files |= window_files(starts)
    shards = fused_arrays(num_tokens, k, rows_per_shard)[0]
    for shard in range(shards.num_files):
        start, stop = shards.rows_of(shard)
        receipt = FusedReceipt(
            part=shard_part(shard),
            start=start,
            stop=stop,
            fingerprint_digest=plan.digest,
            files={},
            content=ShardTotals(kinds=(), sources=()),
        )
        files[receipt_path(receipt.part)] = receipt.to_bytes()
    for name, data in files.items():
        publish(location / name, data)
    manifest = FusedManifest(
        plan=plan,
        plan_digest=plan.digest,
        recipe_digest=plan.recipe.digest,
        num_tokens=num_tokens,
        num_documents=1,
        num_windows=len(starts) - 1,
        kinds={},
        sources=(),
        num_bytes=sum(len(data) for name, data in files.items() if "/c/" in name),
        files={name: FileRecord.of(data) for name, data in files.items()},
    )
    manifest.save(location / "manifest.json")
    return location.path, arrays


def share(folder, target):
    """Write the shared form of a local one."""
    pack_fused(Location.parse(folder), target)
    return target


def windows_of(folder):
    """All samples of a local dataset, as lists."""
    dataset = FusedDataset(folder)
    return [plain(dataset[window]) for window in range(len(dataset))]


def plain(sample):
    return {name: value.tolist() for name, value in sample.items()}
