"""JSON documents of a vocabulary."""

from __future__ import annotations

from fusestore.store.manifest import Count, Manifest
from fusestore.store.receipts import FileRecords


class VocabularyFingerprint(Manifest):
    """What a vocabulary depends on.

    Attributes:
        tokenizer_digest: SHA-256 of the tokenizer's canonical form, hexadecimal.
    """

    tokenizer_digest: str


class VocabularyManifest(Manifest):
    """A complete vocabulary.

    Attributes:
        fingerprint: its tokenizer.
        num_tokens: ids, from 0 to the tokenizer's largest.
        files: records of every other file of the folder, by path.
    """

    fingerprint: VocabularyFingerprint
    num_tokens: Count
    files: FileRecords
