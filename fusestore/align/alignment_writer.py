"""Writing an alignment: shard by shard, over any number of runs, with memory for one shard.

Several writers at once divide the shards by leases (`store.leases`).

A shard holds a fixed number of target tokens. It depends only on the documents it touches (a
document in two shards is aligned for both), so an interrupted run resumes where it stopped, and the
same inputs give the same bytes. Order on disk: fingerprint, layout, then the files and the receipt
of each shard, and last the manifest.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import ALIGNMENT_KINDS, AlignmentMethod
from fusestore.align.manifest import LAYOUT_PART, AlignmentFingerprint, AlignmentManifest
from fusestore.align.report.totals import AlignmentTotals, compare_methods, document_blocks
from fusestore.align.report.unmatched import UNMATCHED_FILE, unmatched_table
from fusestore.align.stored import Alignment, AlignmentRows, open_alignment
from fusestore.align.tokens.pairing import align_table, check_method, check_tokens
from fusestore.align.tokens_digest import digest_of_hashes
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap
from fusestore.errors import FusestoreError, IncompatibleError
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.arrays import array_metadata, encode_shard, group_metadata
from fusestore.store.copy import matches
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.leases import LEASE_FOLDER, remove_leases, share_shards
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenReader, document_range
from fusestore.tokenizers.vocabulary import Vocabulary

ROWS_PER_SHARD = 2**18
"""Target tokens in a shard: 1.3 MB of files; making it takes about ten times that in memory."""


def write_alignment(
    location: Location,
    source: TokenReader,
    target: TokenReader,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    *,
    source_cache_digest: str,
    source_corpus_digest: str,
    target_corpus_digest: str,
    method: AlignmentMethod = "span",
    vocabulary_map: VocabularyMap | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: Progress = ignore_progress,
) -> Alignment:
    """Align and store, shard by shard; finished shards of an earlier run are kept.

    Args:
        location: the alignment's folder.
        source: the cache's tokens.
        target: the target's tokens of the same documents.
        source_vocab: vocabulary of the source ids.
        target_vocab: vocabulary of the target ids.
        source_cache_digest: digest of the source's cache.
        source_corpus_digest: digest of the cache's corpus.
        target_corpus_digest: digest of the target tokens' corpus.
        method: see `align_table`.
        vocabulary_map: see `align_table`.
        rows_per_shard: target tokens in a shard.
        progress: receives the target tokens done and their total after every shard.

    Raises:
        IncompatibleError: the corpora differ, or ids do not belong to their vocabulary.
        FingerprintMismatchError: an alignment of this name has other inputs or settings.
        InvalidInputError: an unknown method, or end offsets that decrease.
        In each case the store is unchanged.
    """
    if source_corpus_digest != target_corpus_digest:
        raise IncompatibleError(
            f"The source cache is of corpus {source_corpus_digest[:16]} and the target tokens of "
            f"corpus {target_corpus_digest[:16]}; only two tokenizations of one corpus can be "
            "aligned. Capture the source over the target's corpus."
        )
    check_method(source, target, source_vocab, target_vocab, method, vocabulary_map)
    source_tokens_digest, target_tokens_digest = _checked_digests(
        source, target, source_vocab, target_vocab
    )
    fingerprint = AlignmentFingerprint(
        method=method,
        source_cache_digest=source_cache_digest,
        corpus_digest=source_corpus_digest,
        source_tokenizer_digest=source_vocab.tokenizer_digest,
        target_tokenizer_digest=target_vocab.tokenizer_digest,
        source_tokens_digest=source_tokens_digest,
        target_tokens_digest=target_tokens_digest,
        vocabulary_map_digest=None if vocabulary_map is None else vocabulary_map.digest,
        num_documents=len(target.document_offsets) - 1,
        num_source_tokens=int(source.document_offsets[-1]),
        num_target_tokens=int(target.document_offsets[-1]),
        rows_per_shard=rows_per_shard,
    )
    write_fingerprint(location, fingerprint, f"Alignment {location.name!r}")
    if (location / "manifest.json").exists():
        # A writer that died after writing the manifest left its leases.
        remove_leases(location / LEASE_FOLDER)
        return open_alignment(location)
    remove_abandoned(location)
    layout = _write_layout(location, fingerprint, target.document_offsets)
    plan = fingerprint.plan
    sound: dict[int, Receipt] = {}
    done = 0

    def finished() -> Collection[int]:
        # Each shard is read and checked once, whoever wrote it.
        present = set((location / "receipts").list())
        for shard in range(len(plan)):
            if shard not in sound and f"{shard_part(shard)}.json" in present:
                receipt = _whole_receipt(location, fingerprint, shard_part(shard))
                if receipt is not None:
                    sound[shard] = receipt
        return sound

    with share_shards(location, finished, len(plan)) as shards:
        for shard in shards:
            start, stop = plan.bounds(shard)
            position, kind = _aligned_rows(
                source, target, source_vocab, target_vocab, method, vocabulary_map, start, stop
            )
            position_array, kind_array, _ = fingerprint.arrays
            files = {
                position_array.file_name(shard): encode_shard(position_array, shard, position),
                kind_array.file_name(shard): encode_shard(kind_array, shard, kind),
            }
            sound[shard] = Receipt.publish(
                location, shard_part(shard), (start, stop), fingerprint.digest, files
            )
            done = sum(receipt.stop - receipt.start for receipt in sound.values())
            progress(done, plan.num_rows)
    if done < plan.num_rows:
        # Other writers made the last shards.
        progress(plan.num_rows, plan.num_rows)
    receipts = [layout, *(sound[shard] for shard in range(len(plan)))]
    alignment = _finish(location, fingerprint, receipts, source, target, source_vocab, target_vocab)
    remove_leases(location / LEASE_FOLDER)
    return alignment


def _checked_digests(
    source: TokenReader, target: TokenReader, source_vocab: Vocabulary, target_vocab: Vocabulary
) -> tuple[str, str]:
    """SHA-256 of the digests of offsets, ids and end offsets of each side, which are checked."""
    sides = (("source", source, source_vocab), ("target", target, target_vocab))
    states = {name: (hashlib.sha256(), hashlib.sha256()) for name, _, _ in sides}
    for start, stop in document_blocks(source, target):
        for name, reader, vocabulary in sides:
            tokens = document_range(reader, start, stop)
            check_tokens(tokens, vocabulary, name)
            ids, ends = states[name]
            ids.update(np.ascontiguousarray(tokens.token_ids, "<i4").data)
            ends.update(np.ascontiguousarray(tokens.end_offsets, "<i4").data)
    return digest_of_hashes(source, *states["source"]), digest_of_hashes(target, *states["target"])


def _write_layout(
    location: Location, fingerprint: AlignmentFingerprint, offsets: npt.NDArray[np.int64]
) -> Receipt:
    receipt = _whole_receipt(location, fingerprint, LAYOUT_PART)
    if receipt is not None:
        return receipt
    arrays = fingerprint.arrays
    attributes = {"kind": "alignment", "format_version": fingerprint.format_version}
    files = {"zarr.json": group_metadata({"fusestore": attributes})}
    files |= {f"{array.name}/zarr.json": array_metadata(array) for array in arrays}
    document_offsets = arrays[2]
    files[document_offsets.file_name(0)] = encode_shard(
        document_offsets, 0, np.ascontiguousarray(offsets, np.int64)
    )
    rows = fingerprint.num_target_tokens
    return Receipt.publish(location, LAYOUT_PART, (0, rows), fingerprint.digest, files)


def _whole_receipt(
    location: Location, fingerprint: AlignmentFingerprint, part: str
) -> Receipt | None:
    """The receipt of an earlier run, if it is of this alignment and its files are whole."""
    try:
        receipt = Receipt.load(location / receipt_path(part))
        sound = (receipt.part, receipt.fingerprint_digest) == (part, fingerprint.digest) and all(
            matches(location / name, record) for name, record in receipt.files.items()
        )
    except FusestoreError:
        return None
    return receipt if sound else None


def _aligned_rows(
    source: TokenReader,
    target: TokenReader,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
    method: AlignmentMethod,
    vocabulary_map: VocabularyMap | None,
    start: int,
    stop: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Rows `[start, stop)` of the alignment, by aligning the documents that overlap them."""
    offsets = target.document_offsets
    first = int(np.searchsorted(offsets, start, side="right")) - 1
    last = int(np.searchsorted(offsets, stop, side="left"))
    position, kind = align_table(
        document_range(source, first, last),
        document_range(target, first, last),
        source_vocab,
        target_vocab,
        method,
        vocabulary_map,
    )
    rows = slice(start - int(offsets[first]), stop - int(offsets[first]))
    return position[rows], kind[rows]


def _finish(
    location: Location,
    fingerprint: AlignmentFingerprint,
    receipts: list[Receipt],
    source: TokenReader,
    target: TokenReader,
    source_vocab: Vocabulary,
    target_vocab: Vocabulary,
) -> Alignment:
    """Count the stored rows; write the table of unmatched tokens, then the manifest."""
    files = {name: record for receipt in receipts for name, record in receipt.files.items()}
    files["fingerprint.json"] = FileRecord.of(fingerprint.to_bytes())
    for receipt in receipts:
        files[receipt_path(receipt.part)] = FileRecord.of(receipt.to_bytes())
    sample = compare_methods(source, target, source_vocab, target_vocab)
    totals = AlignmentTotals.zero(len(source_vocab), len(target_vocab))
    for start, stop in document_blocks(source, target):
        # A new reader for each block, because what a reader has mapped stays resident.
        rows = AlignmentRows(location, fingerprint, files)
        totals.add(
            document_range(source, start, stop),
            document_range(target, start, stop),
            *rows.for_documents(start, stop),
        )
    buffer = io.BytesIO()
    unmatched_table(
        {
            "source": (source_vocab, totals.unmatched_source, totals.total_source),
            "target": (target_vocab, totals.unmatched_target, totals.total_target),
        }
    ).write_parquet(buffer, compression="zstd", statistics=True)
    publish(location / UNMATCHED_FILE, buffer.getvalue())
    manifest = AlignmentManifest(
        fingerprint=fingerprint,
        counts=dict(zip(ALIGNMENT_KINDS, totals.kinds.tolist(), strict=True)),
        unused_source_tokens=int(totals.unmatched_source.sum()),
        sample=sample,
        files=files | {UNMATCHED_FILE: FileRecord.of(buffer.getvalue())},
    )
    manifest.save(location / "manifest.json")
    return Alignment(location, manifest)
