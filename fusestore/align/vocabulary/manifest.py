"""What the JSON documents of a vocabulary map say."""

from __future__ import annotations

from fusestore.align.kinds import MapMethod, TieBreak
from fusestore.store.manifest import Manifest
from fusestore.store.receipts import FileRecord


class VocabularyMapFingerprint(Manifest):
    """What a vocabulary map depends on.

    Attributes:
        source_tokenizer_digest: the tokenizer mapped from.
        target_tokenizer_digest: the tokenizer mapped to.
        method: exact, mined, prefix or statistical.
        tie_break: how ties of `mined` and `statistical` were broken.
        corpus_digest: the corpus whose pairs were counted, of a statistical map alone.
    """

    source_tokenizer_digest: str
    target_tokenizer_digest: str
    method: MapMethod
    tie_break: TieBreak
    corpus_digest: str | None


class VocabularyMapManifest(Manifest):
    """A complete vocabulary map.

    Attributes:
        fingerprint: what was mapped, and how.
        num_source_ids: rows of the map.
        counts: source ids by kind.
        content_digest: `VocabularyMap.digest`, the same for every copy of the map.
        files: every other file of the folder: path → what it holds.
    """

    fingerprint: VocabularyMapFingerprint
    num_source_ids: int
    counts: dict[str, int]
    content_digest: str
    files: dict[str, FileRecord]
