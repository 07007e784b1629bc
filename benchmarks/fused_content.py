"""The content that loaders and streams are measured with: a fused dataset of random rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.recipe import Recipe
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.arrays import array_metadata, encode_shard
from fusestore.store.receipts import FileRecord

K = 32
WINDOW = 1_024
SHARD = 65_536

Arrays = dict[str, np.ndarray]

NAMES = {
    "input_ids": "input_ids",
    "next_ids": "next_ids",
    "ids": "fused_ids",
    "logprobs": "fused_logprobs",
    "tail": "fused_tail",
    "kind": "fused_mask",
}
"""What samples are made of, and what they call it."""


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
            "packing": "stream",
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
    files = {"fingerprint.json": plan.to_bytes()}
    whole = {
        **arrays,
        "source": np.zeros(num_tokens, np.int16),
        "document": np.zeros(num_tokens, np.int32),
        "known": np.ones(num_tokens, np.float32),
    }
    records = {"fingerprint.json": FileRecord.of(files["fingerprint.json"])}
    publish(Location.parse(folder / "fingerprint.json"), files["fingerprint.json"])
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
