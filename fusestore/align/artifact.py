"""The alignment as a kind of artifact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusestore.align.manifest import AlignmentFingerprint, AlignmentManifest
from fusestore.store.artifact_types import DocumentSchema, Input, RebuildTools, TableSchema, View
from fusestore.store.findings import Finding
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt
from fusestore.store.registry import Artifact, ArtifactKind


class AlignmentKind(ArtifactKind):
    """For each target position of a corpus, the source row that may supervise it."""

    name, folder, title = "alignment", "alignments", "alignment"
    made_by = "Make one with `fusestore align`."

    def parse(self, data: bytes, file: str) -> AlignmentManifest:
        """The alignment's manifest."""
        return AlignmentManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Target tokens by kind."""
        return ", ".join(f"{kind} {count:,}" for kind, count in manifest["counts"].items())

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """Corpus, cache, the map that pairs had to agree with, and the target's vocabulary."""
        fingerprint = manifest["fingerprint"]
        yield Input("corpus", str(fingerprint["corpus_digest"]))
        yield Input("cache", str(fingerprint["source_cache_digest"]))
        if fingerprint["vocabulary_map_digest"] is not None:
            yield Input("map", str(fingerprint["vocabulary_map_digest"]))
        yield Input("vocabulary", str(fingerprint["target_tokenizer_digest"]))

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """All files and, unless `quick`, all rows."""
        findings = list(super().check(store, artifact, quick=quick))
        if not findings and not quick:
            from fusestore.align.verify import alignment_findings

            findings += alignment_findings(store, artifact.location)
        return findings

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """See `rebuild_alignment`: only damaged shards are aligned again."""
        from fusestore.align.rebuild_alignment import rebuild_alignment

        del findings, tools
        rebuild_alignment(store, artifact.name)

    def view(self, store: Store, artifact: Artifact, rows: int) -> View:
        """Coverage by method, and the unmatched tokens."""
        from fusestore.align.report.overview import alignment_view
        from fusestore.align.stored import open_alignment

        del store
        return alignment_view(open_alignment(artifact.location), rows)

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint, receipts, manifest."""
        root = "alignments/<alignment>"
        return {
            "alignment-fingerprint": DocumentSchema(
                AlignmentFingerprint, f"{root}/fingerprint.json"
            ),
            "alignment-receipt": DocumentSchema(Receipt[None], f"{root}/receipts/<part>.json"),
            "alignment": DocumentSchema(AlignmentManifest, f"{root}/manifest.json"),
        }

    def tables(self) -> Mapping[str, TableSchema]:
        """The alignment as a table (made on demand), and the unmatched tokens."""
        from fusestore.align.report.aligned_table import ALIGNMENT_SCHEMA
        from fusestore.align.report.unmatched import UNMATCHED_SCHEMA

        return {
            "alignment": TableSchema(
                "none: `Alignment.to_polars` makes it from the stored arrays",
                "one token of the target, in corpus order",
                ALIGNMENT_SCHEMA,
                {
                    "document": "index of the document in the corpus",
                    "target_pos": "position of the target's token in its document, from 0",
                    "source_pos": "position in the document of the row that may supervise it; null "
                    "for none",
                    "kind": "span: equal end offsets; mined: by edit distance alone; none",
                },
                frozenset({"source_pos"}),
            ),
            "unmatched": TableSchema(
                "alignments/<alignment>/unmatched.parquet",
                "one token id with unmatched occurrences: by side, then by falling number of these",
                UNMATCHED_SCHEMA,
                {
                    "side": "the tokenizer that the id belongs to",
                    "token_id": "token id",
                    "bytes": "the UTF-8 bytes the token stands for",
                    "text": "the bytes as text; invalid UTF-8 as \\xNN",
                    "unmatched": "target: occurrences without a source row; source: occurrences "
                    "with a row that supervises no target position",
                    "total": "occurrences in the corpus",
                },
            ),
        }
