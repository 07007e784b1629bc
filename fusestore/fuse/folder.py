"""`FusedFolder`: a fused dataset on disk, shard by shard, in any order and by any process.

The plan is written first and the manifest last. In between, a shard is made on request: its files
are published whole and then recorded in a receipt. The bytes of a shard depend on the plan alone,
so the files of a complete dataset do not depend on how its shards were made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from fusestore.cache.reader import Cache
from fusestore.errors import NotFoundError, StorageError
from fusestore.fuse.choices import KIND_NAMES
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.layout import fused_arrays
from fusestore.fuse.locks import remove_locks, shard_lock
from fusestore.fuse.manifest import (
    FusedManifest,
    FusedReceipt,
    FusionPlan,
    ShardTotals,
    SourceDigests,
    SourceStatistics,
    SourceTotals,
)
from fusestore.fuse.packing import window_files
from fusestore.fuse.shard import fuse_rows
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.arrays import ArraySpec, array_metadata, encode_shard, group_metadata
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.licenses import LicensedInput, worth_keeping
from fusestore.store.receipts import FileRecord, receipt_path, shard_part

PLAN_FILE = FINGERPRINT_FILE


def plan_of(fusion: Fusion) -> FusionPlan:
    """The plan of a fusion; its digest is the fused dataset's identity."""
    documents = np.ascontiguousarray(fusion.documents, "<i8")
    return FusionPlan(
        recipe=fusion.recipe,
        corpus_digest=fusion.corpus_digest,
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
        num_tokens=fusion.num_tokens,
        num_documents=len(fusion.documents),
        tokens_digest=fusion.tokens_digest,
        documents_digest=hashlib.sha256(documents.tobytes()).hexdigest(),
    )


def plan_arrays(plan: FusionPlan) -> tuple[ArraySpec, ...]:
    """The arrays of a fused dataset, all cut into the same shards."""
    return fused_arrays(plan.num_tokens, plan.recipe.top_k, plan.recipe.rows_per_shard)


def metadata_files(plan: FusionPlan) -> dict[str, bytes]:
    """Every zarr.json of a fused dataset by its path."""
    metadata = {"zarr.json": group_metadata({"plan_digest": plan.digest})}
    return metadata | {f"{a.name}/zarr.json": array_metadata(a) for a in plan_arrays(plan)}


class FusedFolder:
    """The folder of a fused dataset, complete or not. Its constructor writes nothing; pickles.

    Attributes:
        location: the folder.
        fusion: recipe and inputs of the dataset.
    """

    def __init__(self, location: Location, fusion: Fusion) -> None:
        self.location = location
        self.fusion = fusion

    @cached_property
    def plan(self) -> FusionPlan:
        """The content of fingerprint.json."""
        return plan_of(self.fusion)

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays, all cut into the same shards."""
        return plan_arrays(self.plan)

    @property
    def num_shards(self) -> int:
        """Number of shards of the complete dataset."""
        return self.arrays[0].num_files

    def begin(self) -> None:
        """Write the plan and the arrays' metadata unless they exist.

        Raises:
            FingerprintMismatchError: the folder holds a fused dataset made from something else.
            InvalidInputError: a document is longer than a window may be; nothing was written.
        """
        # Made before anything is written: windows may be too short for the documents.
        _ = self.metadata
        write_fingerprint(self.location, self.plan, "Fused dataset")
        if (self.location / MANIFEST_FILE).exists():
            return
        remove_abandoned(self.location)
        self.write_metadata()

    def write_metadata(self) -> None:
        """Write the arrays' metadata and the windows' beginnings, where they are not yet."""
        for path, data in self.metadata.items():
            file = self.location / path
            if not (file.exists() and file.read_bytes() == data):
                publish(file, data)

    def manifest(self) -> FusedManifest | None:
        """The manifest, once the dataset is complete."""
        try:
            return FusedManifest.load(self.location / MANIFEST_FILE)
        except NotFoundError:
            return None

    def finished(self) -> set[int]:
        """Shards with a receipt and all their files; a receipt alone is no proof."""
        names = set((self.location / "receipts").list())
        shards = {int(name.removesuffix(".json")) for name in names if name.endswith(".json")}
        for array in self.arrays:
            if shards:
                present = set((self.location / array.name / "c").list())
                shards = {shard for shard in shards if str(shard) in present}
        return shards

    def make_shard(self, shard: int) -> bool:
        """Make a shard unless it exists; waits while another process makes it.

        Returns:
            Whether this call made it.

        Raises:
            CorruptionError: an input is damaged; finished shards stay, and this one has no receipt.
        """
        if self._has(shard):
            return False
        with shard_lock(self.location, shard):
            if self._has(shard):
                return False
            self._write(shard)
        return True

    def complete(self) -> FusedManifest | None:
        """Write the manifest if no shard is missing; else return None."""
        manifest = self.to_manifest()
        if manifest is not None:
            self.save(manifest)
        return manifest

    def save(self, manifest: FusedManifest) -> None:
        """Write the manifest of all shards, and clear up."""
        manifest.save(self.location / MANIFEST_FILE)
        remove_locks(self.location)
        # Of a writer that was killed since this one began.
        remove_abandoned(self.location)

    def make_missing(self) -> FusedManifest:
        """Make the shards that are missing, one after the other; the manifest of all of them.

        Raises:
            CorruptionError: an input is damaged; finished shards stay.
            StorageError: a shard is missing afterwards.
        """
        for shard in range(self.num_shards):
            self.make_shard(shard)
        manifest = self.to_manifest()
        if manifest is None:
            raise StorageError(
                f"Shards of {self.location} disappear while others are made. Find out what else "
                "writes to that folder, then run the same command again."
            )
        return manifest

    def to_manifest(self) -> FusedManifest | None:
        """The manifest of the shards that there are; None if one is missing."""
        receipts = []
        if len(self.finished()) < self.num_shards:
            return None
        for shard in range(self.num_shards):
            receipt = FusedReceipt.load(self._receipt_file(shard))
            if receipt.fingerprint_digest != self.plan.digest:
                return None
            receipts.append(receipt)
        metadata = {path: FileRecord.of(data) for path, data in self.metadata.items()}
        metadata[PLAN_FILE] = FileRecord.of(self.plan.to_bytes())
        for receipt in receipts:
            metadata[receipt_path(receipt.part)] = FileRecord.of(receipt.to_bytes())
        num_windows = len(self.fusion.window_starts) - 1
        manifest = _manifest(self.plan, num_windows, receipts, metadata)
        return manifest.model_copy(update={"made_from": _teachers(self.fusion)})

    @cached_property
    def metadata(self) -> Mapping[str, bytes]:
        """Files that are written after the plan and before the first shard, by path."""
        files = metadata_files(self.plan)
        if self.plan.recipe.has_window_table:
            files |= window_files(self.fusion.window_starts)
        return files

    def _receipt_file(self, shard: int) -> Location:
        return self.location / receipt_path(shard_part(shard))

    def _has(self, shard: int) -> bool:
        try:
            receipt = FusedReceipt.load(self._receipt_file(shard))
        except NotFoundError:
            return False
        # A folder with a deleted plan may hold shards of another plan.
        return receipt.fingerprint_digest == self.plan.digest and all(
            (self.location / path).exists() for path in receipt.files
        )

    def _write(self, shard: int) -> None:
        start, stop = self.arrays[0].rows_of(shard)
        rows, totals = fuse_rows(self.fusion, start, stop)
        files = {}
        for array in self.arrays:
            data = encode_shard(array, shard, getattr(rows, array.name))
            path = array.file_name(shard)
            publish(self.location / path, data)
            files[path] = FileRecord.of(data)
        counts = np.bincount(rows.kind, minlength=len(KIND_NAMES))
        receipt = FusedReceipt(
            part=shard_part(shard),
            start=start,
            stop=stop,
            fingerprint_digest=self.plan.digest,
            files=files,
            content=ShardTotals(kinds=tuple(int(count) for count in counts), sources=tuple(totals)),
        )
        publish(self._receipt_file(shard), receipt.to_bytes())


def _teachers(fusion: Fusion) -> tuple[LicensedInput, ...]:
    """The models whose rows are fused, by the manifests of their caches."""
    return worth_keeping(
        LicensedInput(
            role="teacher",
            name=source.name,
            digest=source.cache_digest,
            model_spec=source.cache.manifest.model_spec,
            license=source.cache.manifest.license,
        )
        for source in fusion.sources
        if isinstance(source.cache, Cache)
    )


def _manifest(
    plan: FusionPlan,
    num_windows: int,
    receipts: Sequence[FusedReceipt],
    metadata: Mapping[str, FileRecord],
) -> FusedManifest:
    kinds = np.sum([receipt.content.kinds for receipt in receipts], axis=0)
    per_source = zip(*(receipt.content.sources for receipt in receipts), strict=True)
    files = {path: record for receipt in receipts for path, record in receipt.files.items()}
    return FusedManifest(
        plan=plan,
        plan_digest=plan.digest,
        recipe_digest=plan.recipe.digest,
        num_tokens=plan.num_tokens,
        num_documents=plan.num_documents,
        num_windows=num_windows,
        kinds=dict(zip(KIND_NAMES, (int(count) for count in kinds), strict=True)),
        sources=tuple(
            _statistics(source.cache, SourceTotals.add(parts), plan)
            for source, parts in zip(plan.inputs, per_source, strict=True)
        ),
        num_bytes=sum(record.num_bytes for record in files.values()),
        files={**files, **metadata},
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
        positions_inside=totals.positions_inside / plan.num_tokens,
        positions_mined=totals.positions_mined / plan.num_tokens,
        positions_used=totals.positions_used / plan.num_tokens,
        known_share=mean(totals.known_share, totals.positions_used),
        unmapped_mass=mean(totals.unmapped_mass, totals.positions_used),
    )
