"""Materialising: a recipe and its inputs become a fused dataset on disk, shard by shard.

The plan is written first and the manifest last; a shard's files are published whole and then
recorded in a receipt, so a killed run continues where it stopped and ends with the same bytes.
Memory depends on the shard's rows, on k and on the length of the documents and windows a shard
touches, not on the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.corpus.tokens import TokenTable
from fusestore.errors import FingerprintMismatchError
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.manifest import (
    KIND_NAMES,
    FusedManifest,
    FusionPlan,
    ShardReceipt,
    SourceDigests,
    SourceStatistics,
    SourceTotals,
)
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.shard import fuse_rows
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.arrays import ArraySpec, array_metadata, encode_shard, group_metadata
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.storage.shards import FileRecord
from fusestore.storage.urls import Location

PLAN_FILE = "recipe.json"
MANIFEST_FILE = "manifest.json"


def materialize(
    location: Location,
    recipe: Recipe,
    sources: Sequence[SourceInput],
    *,
    target_tokens: TokenTable,
    documents: npt.NDArray[np.int64],
    vocab_size: int,
    corpus_digest: str,
    target_cache: SourceInput | None = None,
    progress: Progress = ignore_progress,
) -> FusedManifest:
    """Write the fused dataset, or what is missing of it; nothing if it is complete.

    Args:
        location: the fused dataset's own folder.
        recipe: what to do.
        sources: one for each of the recipe's, in any order.
        target_tokens: the target's tokens of the whole corpus.
        documents: int64 [D] indices of the split's documents, in the order of the fused stream.
        vocab_size: tokens of the target (the width of its output).
        corpus_digest: of the corpus.
        target_cache: the target's own cache, for `unaligned = "target"`.
        progress: told the target tokens done after every shard.

    Raises:
        NotFoundError: the recipe names a cache that is not among the sources.
        IncompatibleError: inputs of different corpora, tokenizers or targets.
        InvalidInputError: no such strategy, more entries than tokens, or an empty split.
        FingerprintMismatchError: the folder holds a fused dataset made from something else.
    """
    fusion = prepare(
        recipe,
        sources,
        target_tokens=target_tokens,
        documents=documents,
        vocab_size=vocab_size,
        corpus_digest=corpus_digest,
        target_cache=target_cache,
    )
    plan = _plan(fusion, corpus_digest)
    _claim(location, plan)
    manifest_file = location / MANIFEST_FILE
    if manifest_file.exists():
        return FusedManifest.load(manifest_file)

    remove_abandoned(location)
    num_rows = fusion.tokens.num_tokens
    arrays = fused_arrays(num_rows, recipe.top_k, recipe.rows_per_shard)
    metadata = {"zarr.json": group_metadata({"plan_digest": plan.digest})}
    metadata |= {f"{array.name}/zarr.json": array_metadata(array) for array in arrays}
    for path, data in metadata.items():
        publish(location / path, data)
    done = _finished_shards(location, arrays)
    receipts = []
    for shard in range(arrays[0].num_files):
        receipt = ShardReceipt.load(_receipt_file(location, shard)) if shard in done else None
        # A folder whose plan was deleted may hold shards of another one.
        if receipt is None or receipt.plan_digest != plan.digest:
            receipt = _write_shard(location, fusion, arrays, plan, shard)
        receipts.append(receipt)
        progress(receipts[-1].stop, num_rows)

    others = {path: FileRecord.of(data) for path, data in metadata.items()}
    others[PLAN_FILE] = FileRecord.of(plan.to_bytes())
    for receipt in receipts:
        others[f"receipts/{_receipt_name(receipt.shard)}"] = FileRecord.of(receipt.to_bytes())
    manifest = _manifest(plan, receipts, others)
    manifest.save(manifest_file)
    return manifest


def _plan(fusion: Fusion, corpus_digest: str) -> FusionPlan:
    hasher = hashlib.sha256()
    tokens = fusion.tokens
    for array in (fusion.documents, tokens.document_offsets, tokens.token_ids, tokens.end_offsets):
        hasher.update(np.ascontiguousarray(array, "<i8").tobytes())
    return FusionPlan(
        recipe=fusion.recipe,
        corpus_digest=corpus_digest,
        inputs=tuple(
            SourceDigests(
                cache=source.name,
                cache_digest=source.cache_digest,
                vocabulary_map_digest=source.vocabulary_map_digest,
                alignment_digest=source.alignment_digest,
            )
            for source in fusion.sources
        ),
        target_cache_digest=fusion.target_cache.cache_digest if fusion.target_cache else None,
        vocab_size=fusion.vocab_size,
        sampled=fusion.sampled,
        num_tokens=tokens.num_tokens,
        num_documents=tokens.num_documents,
        tokens_digest=hasher.hexdigest(),
    )


def _claim(location: Location, plan: FusionPlan) -> None:
    file = location / PLAN_FILE
    if not file.exists():
        plan.save(file)
        return
    found = FusionPlan.load(file)
    if found.digest == plan.digest:
        return
    before, now = _settings(found), _settings(plan)
    changes = "; ".join(
        f"{key}: there {before.get(key)!r}, asked {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    )
    raise FingerprintMismatchError(
        f"{location} holds a fused dataset made from something else ({changes}). "
        "Choose another name, or delete that folder first."
    )


def _settings(plan: FusionPlan) -> dict[str, Any]:
    """The plan with its recipe's settings beside its own."""
    content = plan.model_dump(mode="json")
    return {**content.pop("recipe"), **content}


def _finished_shards(location: Location, arrays: Sequence[ArraySpec]) -> set[int]:
    """Shards with a receipt and all their files; a receipt alone is no proof after a deletion."""
    names = set((location / "receipts").list())
    shards = {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}
    for array in arrays:
        if shards:
            present = set((location / array.name / "c").list())
            shards = {shard for shard in shards if str(shard) in present}
    return shards


def _receipt_file(location: Location, shard: int) -> Location:
    return location / "receipts" / _receipt_name(shard)


def _receipt_name(shard: int) -> str:
    return f"{shard:05d}.json"


def _write_shard(
    location: Location,
    fusion: Fusion,
    arrays: Sequence[ArraySpec],
    plan: FusionPlan,
    shard: int,
) -> ShardReceipt:
    start, stop = arrays[0].rows_of(shard)
    rows, totals = fuse_rows(fusion, start, stop)
    files = {}
    for array in arrays:
        data = encode_shard(array, shard, getattr(rows, array.name))
        path = array.file_name(shard)
        publish(location / path, data)
        files[path] = FileRecord.of(data)
    counts = np.bincount(rows.kind, minlength=len(KIND_NAMES))
    receipt = ShardReceipt(
        plan_digest=plan.digest,
        shard=shard,
        start=start,
        stop=stop,
        files=files,
        kinds=tuple(int(count) for count in counts),
        sources=tuple(totals),
    )
    publish(_receipt_file(location, shard), receipt.to_bytes())
    return receipt


def _manifest(
    plan: FusionPlan, receipts: Sequence[ShardReceipt], others: Mapping[str, FileRecord]
) -> FusedManifest:
    kinds = np.sum([receipt.kinds for receipt in receipts], axis=0)
    per_source = zip(*(receipt.sources for receipt in receipts), strict=True)
    files = {path: record for receipt in receipts for path, record in receipt.files.items()}
    return FusedManifest(
        plan=plan,
        plan_digest=plan.digest,
        recipe_digest=plan.recipe.digest,
        num_tokens=plan.num_tokens,
        num_documents=plan.num_documents,
        num_windows=-(-plan.num_tokens // plan.recipe.window_length),
        kinds=dict(zip(KIND_NAMES, (int(count) for count in kinds), strict=True)),
        sources=tuple(
            _statistics(source.cache, SourceTotals.add(parts), plan)
            for source, parts in zip(plan.inputs, per_source, strict=True)
        ),
        num_bytes=sum(record.num_bytes for record in files.values()),
        files={**files, **others},
    )


def _statistics(cache: str, totals: SourceTotals, plan: FusionPlan) -> SourceStatistics:
    def mean(amount: float, count: int) -> float | None:
        value = amount / count if count else float("inf")
        return value if np.isfinite(value) else None

    return SourceStatistics(
        cache=cache,
        bits_per_byte=mean(totals.nats / float(np.log(2.0)), totals.num_bytes),
        score_mean=mean(totals.score_sum, totals.documents_scored),
        documents=totals.documents,
        documents_won=totals.documents_won / plan.num_documents,
        positions_span=totals.positions_span / plan.num_tokens,
        positions_mined=totals.positions_mined / plan.num_tokens,
        positions_used=totals.positions_used / plan.num_tokens,
        unmapped_mass=mean(totals.unmapped_mass, totals.positions_used),
    )
