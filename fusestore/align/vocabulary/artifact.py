"""The vocabulary map as a kind of artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusestore.align.vocabulary.manifest import VocabularyMapFingerprint, VocabularyMapManifest
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.artifact_types import DocumentSchema, Input, RebuildTools, TableSchema
from fusestore.store.findings import Finding
from fusestore.store.layout import Store
from fusestore.store.registry import Artifact, ArtifactKind


class VocabularyMapKind(ArtifactKind):
    """Source token ids to target token ids, named by the two tokenizers and the method."""

    name, folder, title = "map", "vocabulary_maps", "map"
    named_by_user, made_on_demand = False, True

    def parse(self, data: bytes, file: str) -> VocabularyMapManifest:
        """The map's manifest."""
        return VocabularyMapManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its method and size."""
        return f"{manifest['fingerprint']['method']}, {manifest['num_source_ids']:,} source tokens"

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """Both vocabularies, and the corpus that a statistical map was counted in."""
        fingerprint = manifest["fingerprint"]
        for side in ("source", "target"):
            yield Input("vocabulary", str(fingerprint[f"{side}_tokenizer_digest"]))
        if fingerprint["corpus_digest"] is not None:
            yield Input("corpus", str(fingerprint["corpus_digest"]))

    def accompanies(self, manifest: Mapping[str, Any], other: Artifact) -> bool:
        """Whether the other artifact aligns the same tokenizers: fusing reads both."""
        if other.kind.name != "alignment":
            return False
        # An unfinished one will be finished, a damaged one repaired.
        aligned = other.fingerprint if other.manifest is None else other.manifest["fingerprint"]
        if aligned is None:
            return other.damage is not None
        sides = ("source_tokenizer_digest", "target_tokenizer_digest")
        return all(manifest["fingerprint"][side] == aligned[side] for side in sides)

    def digest(self, manifest: Mapping[str, Any]) -> str:
        """The digest of its content."""
        return str(manifest["content_digest"])

    def identity(self, path: str, content: Mapping[str, Any]) -> str | None:
        """The content's digest, which does not depend on the version of Polars that wrote it."""
        return str(content["content_digest"]) if path == MANIFEST_FILE else None

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """Its files and, unless `quick`, all rows."""
        findings = list(super().check(store, artifact, quick=quick))
        if not findings and not quick:
            from fusestore.align.verify import map_findings

            findings += map_findings(store, artifact.location)
        return findings

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """See `rebuild_vocabulary_map`."""
        from fusestore.align.rebuild_alignment import rebuild_vocabulary_map

        del findings, tools
        rebuild_vocabulary_map(store, artifact.name)

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint and manifest."""
        root = "vocabulary_maps/<map>"
        return {
            "vocabulary-map-fingerprint": DocumentSchema(
                VocabularyMapFingerprint, f"{root}/fingerprint.json"
            ),
            "vocabulary-map": DocumentSchema(VocabularyMapManifest, f"{root}/manifest.json"),
        }

    def tables(self) -> Mapping[str, TableSchema]:
        """The map."""
        import numpy as np

        from fusestore.align.vocabulary.vocabulary_map import VocabularyMap

        empty = np.empty(0, np.int32)
        empty_map = VocabularyMap("", "", "mined", "prefix", empty, empty, empty.astype(np.uint8))
        return {
            "vocabulary-map": TableSchema(
                "vocabulary_maps/<map>/map.parquet",
                "one token id of the source, ascending from 0",
                empty_map.to_polars().schema,
                {
                    "source_id": "token id of the source",
                    "target_id": "token id of the target; null for none",
                    "distance": "edit distance of the two tokens in characters; null without a "
                    "target",
                    "kind": "how the pair was found",
                },
                frozenset({"target_id", "distance"}),
            )
        }
