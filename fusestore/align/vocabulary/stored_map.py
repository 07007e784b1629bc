"""Vocabulary maps in a store, named by the two tokenizers' digests so that none is made twice.

vocabulary_maps/<source 16>-<target 16>-<method>/fingerprint.json  written first
                                                 map.parquet       `VocabularyMap.to_polars`
                                                 manifest.json     written last

The method of a statistical map, which depends on a corpus too, is followed by `-<corpus 16>`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from fusestore.align.kinds import MAP_KINDS, MAP_NONE, MapMethod, TieBreak
from fusestore.align.vocabulary.manifest import VocabularyMapFingerprint, VocabularyMapManifest
from fusestore.align.vocabulary.statistics import PairCounts
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap, map_vocabulary
from fusestore.errors import CorruptionError
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.fingerprints import check_same_fingerprint, write_fingerprint
from fusestore.store.foreign_table import read_foreign_table
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.vocabulary import Vocabulary

TABLE_FILE = "map.parquet"

MAP_SCHEMA = pl.Schema(
    {
        "source_id": pl.Int32(),
        "target_id": pl.Int32(),
        "distance": pl.Int32(),
        "kind": pl.Enum(MAP_KINDS),
    }
)
"""One row per token id of the source; `target_id` and `distance` are null for none."""

_REPAIR = "Delete {} and run `fusestore align` again."


@dataclass(frozen=True)
class CountedCorpus:
    """The corpus of a statistical map.

    Attributes:
        digest: of the corpus.
        count: counts its pairs; called only if the map does not exist.
    """

    digest: str
    count: Callable[[], PairCounts]


def vocabulary_map_folder(
    store: Store, source_digest: str, target_digest: str, method: MapMethod, corpus_digest: str
) -> Location:
    """The folder of a map; `corpus_digest` is used for a statistical map only."""
    suffix = f"-{corpus_digest[:16]}" if method == "statistical" else ""
    return store.vocabulary_map(source_digest, target_digest, f"{method}{suffix}")


def stored_vocabulary_map(
    location: Location,
    source: Vocabulary,
    target: Vocabulary,
    method: MapMethod = "prefix",
    tie_break: TieBreak = "prefix",
    progress: Progress = ignore_progress,
    corpus: CountedCorpus | None = None,
) -> VocabularyMap:
    """The map at the location; made and stored if it does not exist.

    Args:
        location: its folder.
        source: the vocabulary to map from.
        target: the vocabulary to map to.
        method: see `map_vocabulary`.
        tie_break: see `map_vocabulary`.
        progress: counts the source tokens that have no equal target token.
        corpus: for `statistical`.

    Raises:
        FingerprintMismatchError: the existing map has other tokenizers, settings or corpus.
        CorruptionError: the existing map is damaged.
        InvalidInputError: an unknown method or tie break, `statistical` without a corpus, or a
            corpus for another method.
        IncompatibleError: the corpus's tokens are not of these vocabularies.
    """
    corpus_digest = None if corpus is None else corpus.digest
    fingerprint = VocabularyMapFingerprint(
        source_tokenizer_digest=source.tokenizer_digest,
        target_tokenizer_digest=target.tokenizer_digest,
        method=method,
        tie_break=tie_break,
        corpus_digest=corpus_digest,
    )
    if (location / MANIFEST_FILE).exists():
        existing = VocabularyMapManifest.load(location / MANIFEST_FILE).fingerprint
        check_same_fingerprint(existing, fingerprint, f"Vocabulary map {location}")
        return load_vocabulary_map(location)
    write_fingerprint(location, fingerprint, "Vocabulary map")
    remove_abandoned(location)
    counts = None if corpus is None else corpus.count()
    result = map_vocabulary(source, target, method, tie_break, progress, counts)
    buffer = io.BytesIO()
    result.to_polars().write_parquet(buffer, compression="zstd", statistics=True)
    publish(location / TABLE_FILE, buffer.getvalue())
    by_kind = np.bincount(result.kind, minlength=len(MAP_KINDS)).tolist()
    VocabularyMapManifest(
        fingerprint=fingerprint,
        num_source_ids=len(result.target_id),
        counts=dict(zip(MAP_KINDS, by_kind, strict=True)),
        content_digest=result.digest,
        files={
            FINGERPRINT_FILE: FileRecord.of(fingerprint.to_bytes()),
            TABLE_FILE: FileRecord.of(buffer.getvalue()),
        },
    ).save(location / MANIFEST_FILE)
    return result


def load_vocabulary_map(location: Location) -> VocabularyMap:
    """Read a stored map.

    Raises:
        NotFoundError: the folder holds no complete map.
        CorruptionError: map.parquet is missing or damaged, or is no map.
    """
    manifest = VocabularyMapManifest.load(location / MANIFEST_FILE)
    path, remedy = location / TABLE_FILE, _REPAIR.format(location)
    fingerprint = manifest.fingerprint
    record = manifest.files.get(TABLE_FILE)
    table, _ = read_foreign_table(path, record, MAP_SCHEMA, manifest.num_source_ids, remedy)
    result = VocabularyMap(
        fingerprint.source_tokenizer_digest,
        fingerprint.target_tokenizer_digest,
        fingerprint.method,
        fingerprint.tie_break,
        table["target_id"].fill_null(-1).to_numpy(),
        table["distance"].fill_null(-1).to_numpy(),
        table["kind"].to_physical().cast(pl.UInt8).to_numpy(),
    )
    if _problem(table, result) or result.digest != manifest.content_digest:
        problem = _problem(table, result) or "is not the map that its manifest names"
        raise CorruptionError(f"{path} {problem}. {remedy}")
    return result


def _problem(table: pl.DataFrame, result: VocabularyMap) -> str | None:
    """Why a table of the right columns is no map; None if it is one."""
    if not (table["source_id"] == pl.int_range(len(table), eager=True)).all():
        return "does not list the source's ids from 0, one after the other"
    if table["kind"].null_count():
        return "has rows without a kind"
    mapped = result.kind != MAP_NONE
    if np.any((result.target_id >= 0) != mapped) or np.any((result.distance >= 0) != mapped):
        return "has rows with a target and without a kind, or the reverse"
    return None
