"""The vocabulary of a tokenizer as a kind of artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.artifact_types import DocumentSchema, RebuildTools, TableSchema
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.layout import Store
from fusestore.store.manifest import check_repaired
from fusestore.store.registry import Artifact, ArtifactKind
from fusestore.tokenizers.manifest import VocabularyFingerprint, VocabularyManifest


class VocabularyKind(ArtifactKind):
    """The bytes of each token id; named by the first 16 digits of the tokenizer's digest."""

    name, folder, title = "vocabulary", "vocabularies", "vocabulary"
    named_by_user, made_on_demand = False, True

    def parse(self, data: bytes, file: str) -> VocabularyManifest:
        """The vocabulary's manifest."""
        return VocabularyManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its number of tokens."""
        return f"{manifest['num_tokens']:,} tokens"

    def digest(self, manifest: Mapping[str, Any]) -> str:
        """The tokenizer's digest."""
        return str(manifest["fingerprint"]["tokenizer_digest"])

    def identity(self, path: str, content: Mapping[str, Any]) -> str | None:
        """The same for each version of Polars that may write the table."""
        return self.digest(content) if path == MANIFEST_FILE else None

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """Check its files and, unless `quick`, that the table can be read."""
        from fusestore.tokenizers.vocabulary_table import TABLE_FILE, load_vocabulary

        findings = list(super().check(store, artifact, quick=quick))
        if not findings and not quick:
            try:
                load_vocabulary(store, artifact.name)
            except DAMAGE as error:
                findings.append(Finding(TABLE_FILE, str(error)))
        return findings

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """Write it again from its tokenizer."""
        from fusestore.storage.publish import retract
        from fusestore.tokenizers.vocabulary_table import save_vocabulary

        del findings
        before = VocabularyManifest.load_if_sound(artifact.location / MANIFEST_FILE)
        vocabulary = tools.tokenizer(artifact.name).vocabulary
        # The manifest is deleted first: after an interruption the vocabulary is unfinished.
        for file in (MANIFEST_FILE, FINGERPRINT_FILE):
            retract(artifact.location / file)
        save_vocabulary(store, vocabulary)
        after = VocabularyManifest.load(artifact.location / MANIFEST_FILE)
        check_repaired(before, after, artifact.location)

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """Verify with `--repair` and a model, which has the tokenizer."""
        return f"{super().remedy(store, name, finding)} --model MODEL"

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint and manifest."""
        root = "vocabularies/<tokenizer>"
        return {
            "vocabulary-fingerprint": DocumentSchema(
                VocabularyFingerprint, f"{root}/fingerprint.json"
            ),
            "vocabulary": DocumentSchema(VocabularyManifest, f"{root}/manifest.json"),
        }

    def tables(self) -> Mapping[str, TableSchema]:
        """The tokens."""
        from fusestore.tokenizers.vocabulary_table import VOCABULARY_SCHEMA

        return {
            "vocabulary": TableSchema(
                "vocabularies/<tokenizer>/vocabulary.parquet",
                "one token id, ascending from 0",
                VOCABULARY_SCHEMA,
                {
                    "token_id": "token id",
                    "bytes": "the UTF-8 bytes the token stands for; empty for an unused id",
                    "kind": "text, byte (byte fallback), special or unused",
                    "roles": "roles of the token: bos, eos, pad, unk; empty for most",
                },
            )
        }
