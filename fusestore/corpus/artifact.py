"""The corpus as a kind of artifact: documents, and their tokens in every tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusestore.corpus.manifest import (
    LICENSE_FILE,
    CorpusFingerprint,
    CorpusLicense,
    CorpusManifest,
    TokensManifest,
)
from fusestore.storage.location import Location
from fusestore.store.artifact_files import (
    FINGERPRINT_FILE,
    MANIFEST_FILE,
    ArtifactFiles,
    Document,
    FileGroup,
    file_group,
    read_document,
)
from fusestore.store.artifact_types import DocumentSchema, RebuildTools, TableSchema, View
from fusestore.store.findings import Finding, check_files, load_or_report
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.receipts import FileRecord, Receipt, receipt_path
from fusestore.store.registry import Artifact, ArtifactKind

DOCUMENTS_RECEIPT = receipt_path("documents")
_TOKENS = "tokens/"


class CorpusKind(ArtifactKind):
    """Documents, sealed by a receipt, and folders of tokens, each sealed by its manifest."""

    name, folder, title = "corpus", "corpora", "corpus"
    made_by = "Make one with `fusestore corpus`."

    def parse(self, data: bytes, file: str) -> CorpusManifest:
        """The corpus's manifest. Its digest does not depend on the encoding of the table."""
        return CorpusManifest.from_bytes(data, file)

    def describe(self, manifest: Mapping[str, Any]) -> str:
        """Its size."""
        return f"{manifest['num_documents']:,} documents, {manifest['num_bytes']:,} bytes"

    def identity(self, path: str, content: Mapping[str, Any]) -> str | None:
        """The same for all encodings of tables and compressed arrays."""
        if path == DOCUMENTS_RECEIPT:
            return str(content["fingerprint_digest"])
        if path.startswith(_TOKENS):
            keys = ("corpus_digest", "tokenizer_digest", "add_bos", "arrays_digest")
            return " ".join(str(content[key]) for key in keys)
        return None

    def files(self, location: Location, path: str, manifest: Document) -> ArtifactFiles:
        """Fingerprint, documents with their receipt, each folder of tokens with its manifest."""
        CorpusManifest.from_bytes(manifest.data, str(location / MANIFEST_FILE))
        sizes = location.sizes()
        seal = read_document(location, DOCUMENTS_RECEIPT, self.identity)
        receipt = Receipt.from_bytes(seal.data, str(location / seal.path))
        groups = [file_group(location, receipt.files, seal)]
        if LICENSE_FILE in sizes:
            data = (location / LICENSE_FILE).read_bytes()
            stated = CorpusLicense.from_bytes(data, str(location / LICENSE_FILE))
            if stated.corpus_digest == manifest.identity:
                groups.append(file_group(location, {LICENSE_FILE: FileRecord.of(data)}))
        for file in _token_manifests(sizes):
            seal = read_document(location, file, self.identity)
            tokens = TokensManifest.from_bytes(seal.data, str(location / file))
            # Tokens that an earlier corpus left are not copied.
            if tokens.corpus_digest == manifest.identity:
                folder = file.removesuffix(MANIFEST_FILE)
                files = {folder + inner: record for inner, record in tokens.files.items()}
                groups.append(file_group(location, files, seal))
        fingerprint = read_document(location, FINGERPRINT_FILE, self.identity)
        return ArtifactFiles(path, location, fingerprint, tuple(groups), manifest, sizes)

    def held(self, files: ArtifactFiles) -> ArtifactFiles:
        """All but tokens, which are made again: the manifest names the documents by digest."""
        groups = (group for group in files.groups if not _is_of_tokens(group))
        return replace(files, groups=tuple(groups))

    def check(self, store: Store, artifact: Artifact, *, quick: bool) -> Iterable[Finding]:
        """The documents against their receipt, finished tokens against their manifests."""
        if not artifact.complete:
            return super().check(store, artifact, quick=quick)
        location = artifact.location
        manifest = CorpusManifest.load(location / MANIFEST_FILE)
        findings: list[Finding] = []
        fingerprint = load_or_report(CorpusFingerprint, location, FINGERPRINT_FILE, findings)
        if fingerprint is not None and fingerprint != manifest.fingerprint:
            findings.append(Finding(FINGERPRINT_FILE, "differs from the one in manifest.json"))
        receipt = load_or_report(Receipt, location, DOCUMENTS_RECEIPT, findings)
        if receipt is not None:
            if receipt.fingerprint_digest != manifest.fingerprint.digest:
                findings.append(Finding(DOCUMENTS_RECEIPT, "is of another corpus"))
            findings += check_files(location, receipt.files, quick=quick)
        if LICENSE_FILE in location.list():
            stated = load_or_report(CorpusLicense, location, LICENSE_FILE, findings)
            if stated is not None and stated.corpus_digest != manifest.digest:
                findings.append(Finding(LICENSE_FILE, "is of another corpus"))
        for name in (location / _TOKENS.removesuffix("/")).list():
            file = f"{_TOKENS}{name}/{MANIFEST_FILE}"
            if not (location / file).exists() and not _were_whole(store, artifact, name):
                # No damage: a killed process left them, and whoever needs them makes them anew.
                continue
            tokens = load_or_report(TokensManifest, location, file, findings)
            if tokens is None:
                continue
            if tokens.corpus_digest != manifest.digest:
                findings.append(Finding(file, "is of another corpus"))
            files = {f"{_TOKENS}{name}/{inner}": record for inner, record in tokens.files.items()}
            broken = list(check_files(location, files, quick=quick))
            findings += broken
            if not broken and not quick and tokens.corpus_digest == manifest.digest:
                findings += _token_findings(store, artifact, f"{_TOKENS}{name}/")
        if not quick and not any(finding.file.startswith("documents") for finding in findings):
            from fusestore.corpus.verify import document_findings

            findings += document_findings(store, artifact.name)
        return findings

    def rebuild(
        self, store: Store, artifact: Artifact, findings: Sequence[Finding], tools: RebuildTools
    ) -> None:
        """See `rebuild_corpus`."""
        from fusestore.corpus.rebuild_corpus import rebuild_corpus

        damaged = {finding.file for finding in findings}
        rebuild_corpus(store, artifact.name, damaged, tools.tokenizer)

    def license(self, location: Location, manifest: Mapping[str, Any]) -> str | None:
        """What was stated of the texts."""
        stated = CorpusLicense.load_if_sound(location / LICENSE_FILE)
        if stated is None or stated.corpus_digest != self.digest(manifest):
            return None
        return str(stated.license)

    def remedy(self, store: Store, name: str, finding: Finding) -> str:
        """Documents come from outside the store; tokens need their tokenizer."""
        if finding.file == LICENSE_FILE:
            return (
                f"delete {self.location(store, name)}/{finding.file} and run the same "
                "`fusestore corpus` again with --license"
            )
        if finding.file in ("documents.parquet", MANIFEST_FILE):
            return (
                f"delete {self.location(store, name)}/{finding.file} and run the same "
                "`fusestore corpus` again, with the same inputs"
            )
        command = super().remedy(store, name, finding)
        return f"{command} --model MODEL" if finding.file.startswith(_TOKENS) else command

    def view_document(self, store: Store, artifact: Artifact, document: int, rows: int) -> View:
        """The document itself; of a conversation all turns, whatever `rows` is."""
        from fusestore.corpus.corpus import open_corpus
        from fusestore.corpus.shown_document import shown_document

        del rows
        return shown_document(open_corpus(store, artifact.name), document)

    def leftovers(self, artifact: Artifact, files: Iterable[str]) -> Iterable[str]:
        """Finished tokens of an earlier corpus of this name."""
        listed = list(files)
        for file in _token_manifests(listed):
            tokens = TokensManifest.load_if_sound(artifact.location / file)
            if tokens is not None and tokens.corpus_digest != artifact.digest:
                folder = file.removesuffix(MANIFEST_FILE)
                yield from (path for path in listed if path.startswith(folder))

    def schemas(self) -> Mapping[str, DocumentSchema]:
        """Fingerprint, receipt, manifest, and the manifest of tokens."""
        root = "corpora/<corpus>"
        return {
            "corpus-fingerprint": DocumentSchema(CorpusFingerprint, f"{root}/fingerprint.json"),
            "corpus": DocumentSchema(CorpusManifest, f"{root}/manifest.json"),
            "corpus-license": DocumentSchema(CorpusLicense, f"{root}/{LICENSE_FILE}"),
            "corpus-receipt": DocumentSchema(Receipt[None], f"{root}/receipts/<part>.json"),
            "tokens": DocumentSchema(TokensManifest, f"{root}/tokens/<tokenizer>/manifest.json"),
        }

    def tables(self) -> Mapping[str, TableSchema]:
        """The documents."""
        from fusestore.corpus.corpus import DOCUMENTS_SCHEMA

        return {
            "documents": TableSchema(
                "corpora/<corpus>/documents.parquet",
                "one document, in corpus order",
                DOCUMENTS_SCHEMA,
                {
                    "document": "index of the document in the corpus, from 0",
                    "source": "name of its source document",
                    "segment": "index of the segment in its source document, from 0",
                    "split": "name of its split",
                    "text": "the text",
                    "byte_length": "bytes of the text in UTF-8",
                    "digest": "SHA-256 of the text in UTF-8, hexadecimal",
                    "conversation": "the conversation that the text stands for, as JSON",
                    "turns": "its turns: role, bytes of the text [start, stop), whether trained on",
                },
                frozenset({"conversation", "turns"}),
            )
        }


def _token_findings(store: Store, artifact: Artifact, path: str) -> Iterable[Finding]:
    from fusestore.corpus.corpus import open_corpus
    from fusestore.corpus.verify import token_findings

    corpus = open_corpus(store, artifact.name)
    return token_findings(store, corpus, artifact.location / path.rstrip("/"), path)


def _is_of_tokens(group: FileGroup) -> bool:
    return group.receipt is not None and group.receipt.path.startswith(_TOKENS)


def _were_whole(store: Store, corpus: Artifact, name: str) -> bool:
    """Whether tokens without a manifest had one: all else is there, and somebody has used them."""
    from fusestore.corpus.tokenize import is_unfinished

    if is_unfinished(corpus.location / f"{_TOKENS}{name}"):
        return False
    tokenizer = name.partition("-")[0]
    return any(
        user.complete
        and any(i.kind == "vocabulary" and i.digest.startswith(tokenizer) for i in user.inputs)
        for user in Lineage.of(store).used_by(corpus)
    )


def _token_manifests(files: Iterable[str]) -> list[str]:
    """The manifests of tokens among a corpus's files; unfinished tokens have none."""
    return sorted(
        file for file in files if file.startswith(_TOKENS) and file.endswith(f"/{MANIFEST_FILE}")
    )
