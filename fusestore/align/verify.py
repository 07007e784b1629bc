"""Verifies the numbers of a complete alignment, and of a vocabulary map."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import ALIGNMENT_KINDS, MAP_KINDS, NONE
from fusestore.align.manifest import AlignmentManifest
from fusestore.align.report.unmatched import UNMATCHED_FILE, read_unmatched
from fusestore.align.stored import Alignment
from fusestore.align.vocabulary.manifest import VocabularyMapManifest
from fusestore.align.vocabulary.stored_map import TABLE_FILE, load_vocabulary_map
from fusestore.cache.reader import open_cache
from fusestore.errors import FusestoreError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store
from fusestore.store.metadata_check import metadata_findings
from fusestore.tokenizers.vocabulary_table import load_vocabulary_manifest

_ROWS_AT_ONCE = 2**20


def alignment_findings(store: Store, location: Location) -> Iterator[Finding]:
    """The problems of an alignment's numbers; its files must be those that its manifest lists.

    Where the store holds the source's cache, positions are compared with its documents.
    """
    manifest = AlignmentManifest.load(location / MANIFEST_FILE)
    alignment, fingerprint = Alignment(location, manifest), manifest.fingerprint
    yield from metadata_findings(location, fingerprint.arrays)
    try:
        offsets = alignment.document_offsets
    except DAMAGE as error:
        yield Finding("document_offsets/c/0", str(error))
        return
    limits = _source_lengths(store, manifest)
    counts = np.zeros(len(ALIGNMENT_KINDS), np.int64)
    for start in range(0, fingerprint.num_target_tokens, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, fingerprint.num_target_tokens)
        try:
            position, kind = alignment.rows(start, stop)
        except DAMAGE as error:
            yield Finding("source_pos", str(error))
            return
        document = np.searchsorted(offsets, np.arange(start, stop), side="right") - 1
        limit = fingerprint.num_source_tokens if limits is None else limits[document]
        rules = {
            "a kind is none of those there are": kind >= len(ALIGNMENT_KINDS),
            "a position has a kind and no source row, or the reverse": (kind == NONE)
            != (position == -1),
            "a source row is outside its document": (position < -1) | (position >= limit),
        }
        for problem, wrong in rules.items():
            if wrong.any():
                row = start + int(np.argmax(wrong))
                shard = row // fingerprint.rows_per_shard
                yield Finding(f"receipts/{shard:06d}.json", f"has a wrong row {row:,}: {problem}")
                return
        counts += np.bincount(kind, minlength=len(counts))
    if dict(zip(ALIGNMENT_KINDS, counts.tolist(), strict=True)) != manifest.counts:
        yield Finding(MANIFEST_FILE, "counts other kinds than there are")
    try:
        read_unmatched(alignment)
    except DAMAGE as error:
        yield Finding(UNMATCHED_FILE, str(error))


def _source_lengths(store: Store, manifest: AlignmentManifest) -> npt.NDArray[np.int64] | None:
    """int64 [D], the source's tokens of each document; None if the store does not tell."""
    fingerprint = manifest.fingerprint
    name = name_by_digest(store, "cache", fingerprint.source_cache_digest, "")
    with contextlib.suppress(FusestoreError):
        lengths = np.diff(open_cache(store, name).document_offsets)
        if len(lengths) == fingerprint.num_documents:
            return lengths
    return None


def map_findings(store: Store, location: Location) -> Iterator[Finding]:
    """The problems of a map's numbers; its files must be those that its manifest lists.

    Where the store holds a vocabulary, the ids are compared with its size.
    """
    manifest = VocabularyMapManifest.load(location / MANIFEST_FILE)
    try:
        found = load_vocabulary_map(location)
    except DAMAGE as error:
        yield Finding(TABLE_FILE, str(error))
        return
    counts = np.bincount(found.kind, minlength=len(MAP_KINDS)).tolist()
    if dict(zip(MAP_KINDS, counts, strict=True)) != manifest.counts:
        yield Finding(MANIFEST_FILE, "counts other kinds than there are")
    source, target = (
        num_ids(store, digest) for digest in (found.source_digest, found.target_digest)
    )
    if source is not None and len(found.target_id) != source:
        problem = f"has {len(found.target_id):,} rows; the source has {source:,} ids"
        yield Finding(TABLE_FILE, problem)
    largest = int(found.target_id.max(initial=-1))
    if target is not None and largest >= target:
        yield Finding(TABLE_FILE, f"names the target id {largest}; there are {target:,}")


def num_ids(store: Store, tokenizer_digest: str) -> int | None:
    """Ids of a tokenizer, if the store holds its vocabulary."""
    with contextlib.suppress(FusestoreError):
        manifest = load_vocabulary_manifest(store, tokenizer_digest)
        if manifest.fingerprint.tokenizer_digest == tokenizer_digest:
            return manifest.num_tokens
    return None
