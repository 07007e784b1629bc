"""Vocabulary maps in a store, kept by the two tokenizers' digests so that none is made twice.

vocabulary_maps/<source 16>-<target 16>-<method>/map.parquet    `VocabularyMap.to_polars`
                                                 manifest.json  written last

A statistical map rests on a corpus too: its method is followed by `-<corpus 16>`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from fusestore.align.kinds import MAP_KINDS, MapMethod, TieBreak
from fusestore.align.vocabulary.statistics import PairCounts
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap, map_vocabulary
from fusestore.errors import CorruptionError, FingerprintMismatchError, NotFoundError
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.layout import Store
from fusestore.store.manifest import Manifest
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.vocabulary import Vocabulary


class VocabularyMapManifest(Manifest):
    """A complete vocabulary map.

    Attributes:
        source_tokenizer_digest: the tokenizer mapped from.
        target_tokenizer_digest: the tokenizer mapped to.
        method: exact, mined, prefix or statistical.
        tie_break: how ties of `mined` and `statistical` were broken.
        corpus_digest: the corpus whose pairs were counted, of a statistical map alone.
        num_source_ids: rows of the map.
        counts: source ids by kind.
        content_digest: `VocabularyMap.digest`, the same for every copy of the map.
        table: size and checksum of map.parquet.
    """

    source_tokenizer_digest: str
    target_tokenizer_digest: str
    method: MapMethod
    tie_break: TieBreak
    corpus_digest: str | None
    num_source_ids: int
    counts: dict[str, int]
    content_digest: str
    table: FileRecord


@dataclass(frozen=True)
class CountedCorpus:
    """What the counts of a statistical map come from.

    Attributes:
        digest: of the corpus.
        count: counts its pairs; called only where the map is not there yet.
    """

    digest: str
    count: Callable[[], PairCounts]


def vocabulary_map_folder(
    store: Store, source_digest: str, target_digest: str, method: MapMethod, corpus_digest: str
) -> Location:
    """Where a map is kept; `corpus_digest` matters to a statistical one alone."""
    suffix = f"-{corpus_digest[:16]}" if method == "statistical" else ""
    return store.vocabulary_map(source_digest, target_digest, f"{method}{suffix}")


def stored_vocabulary_map(
    location: Location,
    source: Vocabulary,
    target: Vocabulary,
    method: MapMethod = "mined",
    tie_break: TieBreak = "prefix",
    progress: Progress = ignore_progress,
    corpus: CountedCorpus | None = None,
) -> VocabularyMap:
    """The map at the location; made and stored first when there is none.

    Args:
        location: its folder.
        source: the vocabulary to map from.
        target: the vocabulary to map to.
        method: see `map_vocabulary`.
        tie_break: see `map_vocabulary`.
        progress: counts the source tokens that have no equal target token.
        corpus: for `statistical`.

    Raises:
        FingerprintMismatchError: the map there is of other tokenizers, settings or corpus.
        CorruptionError: the map there is not what was written.
        InvalidInputError: unknown method or tie break, or a corpus without `statistical`, or not.
        IncompatibleError: the corpus's tokens are not of these vocabularies.
    """
    corpus_digest = None if corpus is None else corpus.digest
    if (location / "manifest.json").exists():
        manifest = VocabularyMapManifest.load(location / "manifest.json")
        asked = {
            "source_tokenizer_digest": source.tokenizer_digest,
            "target_tokenizer_digest": target.tokenizer_digest,
            "method": method,
            "tie_break": tie_break,
            "corpus_digest": corpus_digest,
        }
        differing = [
            f"{name} is {getattr(manifest, name)!r} there and {value!r} here"
            for name, value in asked.items()
            if getattr(manifest, name) != value
        ]
        if differing:
            raise FingerprintMismatchError(
                f"Vocabulary map {location} was made with other settings: {'; '.join(differing)}. "
                "Delete it to make it anew."
            )
        return load_vocabulary_map(location)
    remove_abandoned(location)
    counts = None if corpus is None else corpus.count()
    result = map_vocabulary(source, target, method, tie_break, progress, counts)
    buffer = io.BytesIO()
    result.to_polars().write_parquet(buffer, compression="zstd", statistics=True)
    publish(location / "map.parquet", buffer.getvalue())
    by_kind = np.bincount(result.kind, minlength=len(MAP_KINDS)).tolist()
    VocabularyMapManifest(
        source_tokenizer_digest=result.source_digest,
        target_tokenizer_digest=result.target_digest,
        method=method,
        tie_break=tie_break,
        corpus_digest=corpus_digest,
        num_source_ids=len(result.target_id),
        counts=dict(zip(MAP_KINDS, by_kind, strict=True)),
        content_digest=result.digest,
        table=FileRecord.of(buffer.getvalue()),
    ).save(location / "manifest.json")
    return result


def load_vocabulary_map(location: Location) -> VocabularyMap:
    """Read a stored map.

    Raises:
        NotFoundError: there is none.
        CorruptionError: map.parquet is missing or not what was written.
    """
    manifest = VocabularyMapManifest.load(location / "manifest.json")
    path = location / "map.parquet"
    try:
        data = path.read_bytes()
    except NotFoundError as error:
        raise CorruptionError(f"{path} is missing. Delete {location} to make it anew.") from error
    if FileRecord.of(data) != manifest.table:
        raise CorruptionError(
            f"{path} does not match its checksum. Delete {location} to make it anew."
        )
    table = pl.read_parquet(io.BytesIO(data))
    return VocabularyMap(
        manifest.source_tokenizer_digest,
        manifest.target_tokenizer_digest,
        manifest.method,
        manifest.tie_break,
        table["target_id"].fill_null(-1).to_numpy(),
        table["distance"].fill_null(-1).to_numpy(),
        table["kind"].to_physical().cast(pl.UInt8).to_numpy(),
    )
