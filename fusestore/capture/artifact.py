"""The distribution cache as a kind of artifact."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusestore.cache.manifest import (
    TOKENS_PART,
    CacheManifest,
    Fingerprint,
    Origin,
    content_digest,
)
from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import (
    FINGERPRINT_FILE,
    MANIFEST_FILE,
    ArtifactFiles,
    Document,
    file_group,
    read_document,
    read_documents,
)
from fusestore.store.artifact_types import DocumentSchema, Input, RebuildTools, View
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt, receipt_path, shard_part
from fusestore.store.registry import Artifact, ArtifactKind
from fusestore.store.shown_table import ShownTable

if TYPE_CHECKING:
    from fusestore.cache.document_rows import ShownCacheDocument, ShownRow

_ENTRIES_SHOWN = 8

_COLUMNS = (
    "p(next) is the probability of the token that follows, rank its place among the entries; tail "
    "is the mass outside the entries."
)


class CacheKind(ArtifactKind):
    """One source's distributions in shards; one digest in the manifest covers all receipts."""

    name, folder, title = "cache", "caches", "cache"
    made_by = "Make one with `fusestore capture`."

    def parse(self, data: bytes, file: str) -> CacheManifest:
        """The cache's manifest."""
        return CacheManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its size, and the rule that selects its entries."""
        fingerprint = manifest["fingerprint"]
        k = fingerprint["top_k"]
        kept = f"top {k}"
        if fingerprint["selection"] == "sampled":
            kept = f"{k} draws each"
        elif fingerprint["selection"] == "top-p":
            kept = f"top {fingerprint['top_p']:g} of the mass in at most {k} entries"
        tokens = f"{fingerprint['num_tokens']:,} tokens"
        if fingerprint["kept"]:
            tokens = f"{fingerprint['kept']['num_rows']:,} {fingerprint['only']} of {tokens}"
        origin = fingerprint.get("origin")
        source = "" if origin is None else _imported_from(origin)
        return f"{tokens}, {kept}, {manifest['num_bytes']:,} bytes{source}"

    def inputs(self, manifest: Mapping[str, Any]) -> Iterable[Input]:
        """The corpus, and the vocabulary that it is read with."""
        fingerprint = manifest["fingerprint"]
        corpus = fingerprint["corpus"]
        yield Input("corpus", str(corpus["digest"]), str(corpus["name"]))
        # Nothing else in the store can make it again.
        yield Input("vocabulary", str(fingerprint["tokenizer_digest"]), needed=True)

    def model(self, manifest: Mapping[str, Any]) -> str | None:
        """What opens the source model; for a folder its architecture and digest."""
        model = manifest["fingerprint"]["model"]
        if manifest["fingerprint"].get("origin") and not manifest.get("model_spec"):
            return f"{model['architecture']}, of imported rows"
        digest = f"{model['architecture']} {str(model['spec_digest'])[:16]}"
        return str(manifest.get("model_spec") or f"a folder: {digest}")

    def num_tokens(self, manifest: Mapping[str, Any]) -> int:
        """Tokens of the source, with or without a row."""
        return int(manifest["fingerprint"]["num_tokens"])

    def digest(self, manifest: Mapping[str, Any]) -> str:
        """The digest of its content."""
        return str(manifest["content_digest"])

    def files(self, location: Location, path: str, manifest: Document) -> ArtifactFiles:
        """The fingerprint, the tokens with their receipt, each shard with its receipt."""
        content = CacheManifest.from_bytes(manifest.data, str(location / MANIFEST_FILE))
        fingerprint = read_document(location, FINGERPRINT_FILE, self.identity)
        sizes = location.sizes()
        shards = range(len(content.fingerprint.plan))
        # Before they are listed: a manifest may speak of any number.
        if len(shards) > len(sizes):
            raise CorruptionError(
                f"{location} has {len(sizes):,} files, its manifest speaks of {len(shards):,} "
                f"shards. Run `fusestore verify {path}`."
            )
        files = [receipt_path(part) for part in (TOKENS_PART, *map(shard_part, shards))]
        seals = read_documents(location, files, self.identity)
        receipts = [Receipt.from_bytes(seal.data, str(location / seal.path)) for seal in seals]
        if (
            fingerprint.identity != content.fingerprint_digest
            or content_digest(receipts) != content.content_digest
        ):
            raise CorruptionError(
                f"{location} has a fingerprint or receipts that do not match its manifest. "
                f"Run `fusestore verify {path}`."
            )
        groups = tuple(
            file_group(location, receipt.files, seal)
            for receipt, seal in zip(receipts, seals, strict=True)
        )
        return ArtifactFiles(path, location, fingerprint, groups, manifest, sizes)

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """See `verify_cache`."""
        from fusestore.cache.verify import verify_cache

        del store
        return verify_cache(artifact.location, quick=quick)

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """See `rebuild_cache`."""
        from fusestore.capture.rebuild_cache import rebuild_cache, trusted_fingerprint

        fingerprint = trusted_fingerprint(artifact.location)
        if fingerprint.origin is not None:
            raise InvalidInputError(import_again(artifact.name, fingerprint.origin))
        rebuild_cache(
            store,
            artifact.name,
            findings,
            tools.model(fingerprint.model.spec_digest, fingerprint.tokenizer_digest, artifact.name),
            tools.settings,
            tools.reporter,
        )

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """Verify with `--repair` and the model; of an imported cache, import it again."""
        try:
            fingerprint = CacheManifest.load(store.cache(name) / MANIFEST_FILE).fingerprint
        except DAMAGE:
            fingerprint = None
        if fingerprint is not None and fingerprint.origin is not None:
            return import_again(name, fingerprint.origin)
        return f"{super().remedy(store, name, finding)} --model MODEL"

    def view_document(self, store: Store, artifact: Artifact, document: int, rows: int) -> View:
        """The text, and the most likely next tokens after each token."""
        from fusestore.cache.document_rows import document_rows

        shown = document_rows(store, artifact.name, document, rows)
        table = _rows_table(shown)
        return View(
            shown.model_dump(mode="json"),
            [table._replace(title=f"{shown.text}\n\n{table.title}")],
            f"{_COLUMNS} All entries: --json.",
        )

    def preview(self, store: Store, artifact: Artifact, rows: int) -> View | None:
        """The first of its rows."""
        from fusestore.cache.document_rows import document_rows, first_kept_row
        from fusestore.cache.reader import open_cache

        first = first_kept_row(open_cache(store, artifact.name)) if artifact.manifest else None
        if first is None:
            return None
        shown = document_rows(store, artifact.name, first[0], rows, first[1])
        return View(shown.model_dump(mode="json"), [_rows_table(shown)], _COLUMNS)

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint, receipts, manifest."""
        root = "caches/<cache>"
        return {
            "cache-fingerprint": DocumentSchema(Fingerprint, f"{root}/fingerprint.json"),
            "cache-receipt": DocumentSchema(Receipt[None], f"{root}/receipts/<part>.json"),
            "cache": DocumentSchema(CacheManifest, f"{root}/manifest.json"),
        }


def _imported_from(origin: Mapping[str, Any]) -> str:
    names = [file["name"] for file in origin["files"]]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f", imported from {origin['format']} ({', '.join(names[:2])}{more})"


def import_again(name: str, origin: Origin) -> str:
    """What to do about damage in an imported cache."""
    files = ", ".join(f"{file.name} (SHA-256 {file.sha256[:16]}…)" for file in origin.files[:3])
    more = f" and {len(origin.files) - 3} more" if len(origin.files) > 3 else ""
    return (
        f"Its rows were imported, and no model here computes them: remove cache/{name} and run "
        f"`fusestore import {origin.format}` again with {files}{more}"
    )


def _rows_table(shown: ShownCacheDocument) -> ShownTable:
    """Rows of a document, with the most likely next tokens of each."""
    lines = [
        [
            str(row.position),
            _quoted(row.token),
            _probability(row.label_logprob),
            "-" if row.label_rank is None else str(row.label_rank),
            _tail_text(row),
            "  ".join(
                f"{_quoted(entry.token)} {_probability(entry.logprob)}"
                for entry in row.entries[:_ENTRIES_SHOWN]
            ),
        ]
        for row in shown.rows
    ]
    title = f"{shown.artifact}, document {shown.document}, {shown.num_tokens:,} tokens"
    return ShownTable(title, ["position", "token", "p(next)", "rank", "tail", "entries"], lines)


def _probability(logprob: float | None) -> str:
    return "" if logprob is None else f"{math.exp(logprob):.3f}"


def _tail_text(row: ShownRow) -> str:
    if not row.kept:
        return "no row"
    return "unknown" if row.tail is None else _probability(row.tail)


def _quoted(text: str) -> str:
    """A token in quotes, on one line."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{''.join(shown)}'"
