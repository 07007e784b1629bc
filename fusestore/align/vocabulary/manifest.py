"""A vocabulary map's JSON documents."""

from __future__ import annotations

from fusestore.align.kinds import MapMethod, TieBreak
from fusestore.store.manifest import Count, Manifest
from fusestore.store.receipts import FileRecords


class VocabularyMapFingerprint(Manifest):
    """Everything that determines a vocabulary map.

    Attributes:
        source_tokenizer_digest: the tokenizer mapped from.
        target_tokenizer_digest: the tokenizer mapped to.
        method: exact, mined, prefix or statistical.
        tie_break: how ties of `mined` and `statistical` were broken.
        corpus_digest: the corpus that a statistical map counts pairs in; None for other methods.
    """

    source_tokenizer_digest: str
    target_tokenizer_digest: str
    method: MapMethod
    tie_break: TieBreak
    corpus_digest: str | None


class VocabularyMapManifest(Manifest):
    """A complete vocabulary map.

    Attributes:
        fingerprint: inputs and settings.
        num_source_ids: rows of the map.
        counts: source ids by kind of row.
        content_digest: `VocabularyMap.digest`, the same for every copy of the map.
        files: record of every other file, by its path in the folder.
    """

    fingerprint: VocabularyMapFingerprint
    num_source_ids: Count
    counts: dict[str, Count]
    content_digest: str
    files: FileRecords
