"""Tokens of a corpus, computed once per tokenizer and stored with the corpus.

Under `corpora/<corpus>/tokens/<first 16 digits of the tokenizer's digest>[-bos]/`, or for
conversations `<…>-<first 16 digits of the chat template's digest>/`, lies a Zarr v3 group:
`token_ids` and `end_offsets` (int32, one per token), `document_offsets` (int64, D + 1).
`manifest.json` has the identity. Any range can be read by itself, from a disk or a URL, and every
chunk has a checksum. Memory grows with neither the texts nor the tokens, only with D.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.corpus.corpus import Corpus, open_corpus
from fusestore.corpus.document_encoder import DocumentEncoder
from fusestore.corpus.manifest import TokensManifest
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import ArraySpec, array_metadata, encode_shard, group_metadata
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord
from fusestore.store.stored_size import listing_problem
from fusestore.tokenizers.token_table import TokenTable, concatenated, offsets_problem
from fusestore.tokenizers.tokenizer import Tokenizer

_TOKENS = "tokens"
_TOKENS_PER_CHUNK = 8_192
_TOKENS_PER_SHARD = 1_048_576


class StoredTokens:
    """Tokens of every document of a corpus in one tokenizer, read range by range.

    A `TokenReader`. Opening reads the manifest; can be pickled.
    """

    def __init__(self, location: Location, manifest: TokensManifest) -> None:
        self.location = location
        self.manifest = manifest
        specs = token_arrays(manifest.num_tokens, manifest.num_documents)
        problem = listing_problem(specs, manifest.files)
        if problem is not None:
            raise CorruptionError(f"The manifest of {location} is wrong: {problem}.")
        self._readers = [ArrayReader(location, spec) for spec in specs]

    @property
    def digest(self) -> str:
        """SHA-256 of all ids and offsets."""
        return self.manifest.arrays_digest

    @staticmethod
    def digests() -> ArrayDigests:
        """What computes the digest of all tokens, batch by batch."""
        return ArrayDigests()

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is tokens `[value[i], value[i + 1])`."""
        offsets = self._read(2, 0, self.manifest.num_documents + 1)
        if offsets_problem(offsets, self.manifest.num_tokens) is not None:
            raise CorruptionError(_damaged(self.location))
        return offsets

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of tokens `[start, stop)`.

        Raises:
            CorruptionError: they are missing or damaged.
        """
        return self._read(0, start, stop), self._read(1, start, stop)

    def table(self) -> TokenTable:
        """All tokens at once.

        Raises:
            CorruptionError: they are missing, damaged or do not match the manifest.
        """
        try:
            table = TokenTable(
                *self.read_tokens(0, self.manifest.num_tokens), self.document_offsets
            )
        except InvalidInputError as error:
            raise CorruptionError(_damaged(self.location)) from error
        digests = ArrayDigests()
        digests.add(table.token_ids, table.end_offsets)
        if digests.of(table.document_offsets) != self.digest:
            raise CorruptionError(_damaged(self.location))
        return table

    def _read(self, array: int, start: int, stop: int) -> npt.NDArray[Any]:
        try:
            return self._readers[array].read(start, stop)
        except CorruptionError as error:
            raise CorruptionError(_damaged(self.location)) from error


def corpus_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
    *,
    keep: bool = True,
) -> TokenTable:
    """Tokens of every document of a corpus, all at once; see `store_corpus_tokens`.

    With `keep` false, nothing is written to the store.
    """
    if keep:
        return store_corpus_tokens(store, corpus, tokenizer, add_bos).table()
    encoder = DocumentEncoder.of(_opened(store, corpus), tokenizer, add_bos=add_bos)
    stored = _open(_folder(encoder))
    if stored is not None and _is_of(stored, encoder):
        return stored.table()
    return concatenated(list(encoder.batches()))


def store_corpus_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
) -> StoredTokens:
    """The stored tokens of a corpus; they are made first if they are missing.

    Tokens that an earlier corpus of the same name left are replaced.

    Args:
        store: the store that holds the corpus.
        corpus: the corpus or its name.
        tokenizer: the tokenizer.
        add_bos: start every document with BOS; no effect on conversations.

    Raises:
        NotFoundError: no such corpus.
        CorruptionError: the stored tokens are damaged.
        IncompatibleError: BOS is requested of a tokenizer without one; or the corpus holds
            conversations, and the tokenizer has no chat template, or one that cannot be used.
        InvalidInputError: a conversation cannot be read by the model.
    """
    encoder = DocumentEncoder.of(_opened(store, corpus), tokenizer, add_bos=add_bos)
    location = _folder(encoder)
    stored = _open(location)
    if stored is not None:
        if _is_of(stored, encoder):
            return stored
        # Only tokens that were read and are of another corpus. Another process may write ours.
        location.delete()
    remove_abandoned(location)
    writer = _TokensWriter(location)
    for tokens in encoder.batches():
        writer.add(tokens)
    manifest = TokensManifest(
        corpus_digest=encoder.corpus.digest,
        tokenizer_digest=tokenizer.digest,
        add_bos=encoder.add_bos,
        template=encoder.template,
        num_documents=writer.num_documents,
        num_tokens=writer.num_tokens,
        arrays_digest=writer.finish(),
        files=writer.files,
    )
    manifest.save(location / "manifest.json")
    return StoredTokens(location, manifest)


def is_unfinished(location: Location) -> bool:
    """Whether tokens without a manifest were never whole: files that precede it are missing."""
    return not all((location / spec.name / "zarr.json").exists() for spec in token_arrays(1, 1))


def find_corpus_tokens(corpus: Corpus, tokenizer_digest: str) -> list[StoredTokens]:
    """The corpus's stored tokens in this tokenizer: without BOS, with it, both or none.

    Those of conversations are found for every chat template.

    Args:
        corpus: the corpus.
        tokenizer_digest: of the tokenizer; its first 16 digits suffice.
    """
    folder = corpus.location / _TOKENS
    names = [tokenizer_digest[:16], f"{tokenizer_digest[:16]}-bos"]
    if corpus.manifest.fingerprint.chat is not None:
        names = sorted(name for name in folder.list() if name.startswith(f"{names[0]}-"))
    variants = (_open(folder / name) for name in names)
    return [
        tokens
        for tokens in variants
        if tokens is not None
        and tokens.manifest.corpus_digest == corpus.digest
        and tokens.manifest.tokenizer_digest.startswith(tokenizer_digest)
    ]


def find_tokens(corpus: Corpus, tokenizer_digest: str, num_tokens: int) -> StoredTokens:
    """The stored tokens in a tokenizer, with or without BOS, by their number.

    Raises:
        NotFoundError: the corpus has no such tokens.
    """
    for tokens in find_corpus_tokens(corpus, tokenizer_digest):
        if tokens.manifest.num_tokens == num_tokens:
            return tokens
    raise NotFoundError(
        f"Corpus {corpus.name!r} does not hold its {num_tokens:,} tokens of tokenizer "
        f"{tokenizer_digest[:16]}. Run `fusestore align` with that target again, which stores them."
    )


def _opened(store: str | os.PathLike[str] | Location | Store, corpus: str | Corpus) -> Corpus:
    return open_corpus(store, corpus) if isinstance(corpus, str) else corpus


def _is_of(tokens: StoredTokens, encoder: DocumentEncoder) -> bool:
    manifest = tokens.manifest
    identity = (
        manifest.corpus_digest,
        manifest.tokenizer_digest,
        manifest.add_bos,
        manifest.template,
    )
    expected = (encoder.corpus.digest, encoder.tokenizer.digest)
    return identity == (*expected, encoder.add_bos, encoder.template)


def _folder(encoder: DocumentEncoder) -> Location:
    template = encoder.template
    variant = (
        ("-bos" if encoder.add_bos else "") if template is None else f"-{template.digest[:16]}"
    )
    return encoder.corpus.location / _TOKENS / f"{encoder.tokenizer.digest[:16]}{variant}"


def _open(location: Location) -> StoredTokens | None:
    try:
        return StoredTokens(location, TokensManifest.load(location / "manifest.json"))
    except NotFoundError:
        return None


def token_arrays(num_tokens: int, num_documents: int) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
    """`token_ids`, `end_offsets` and `document_offsets` of T tokens of D documents."""
    ids, ends = (
        ArraySpec(
            name,
            (num_tokens,),
            "int32",
            (_TOKENS_PER_CHUNK,),
            (_TOKENS_PER_SHARD,),
            attributes={"content": content},
            dimension_names=("token",),
        )
        for name, content in (
            ("token_ids", "token ids of the documents"),
            ("end_offsets", "byte offset in its document where a token ends"),
        )
    )
    offsets = ArraySpec(
        "document_offsets",
        (num_documents + 1,),
        "int64",
        (num_documents + 1,),
        None,
        attributes={"content": "document i is tokens [value[i], value[i + 1])"},
        dimension_names=("document",),
    )
    return ids, ends, offsets


class _TokensWriter:
    """Writes the arrays shard by shard, as tokens are added.

    Attributes:
        num_documents, num_tokens: added so far.
        files: records of the files, by path; complete after `finish`.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._waiting = TokenTable(
            np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(1, np.int64)
        )
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._digests = ArrayDigests()
        self._shards = 0
        self.num_documents = 0
        self.num_tokens = 0
        self.files: dict[str, FileRecord] = {}

    def add(self, tokens: TokenTable) -> None:
        """Add the tokens of the next documents."""
        self._digests.add(tokens.token_ids, tokens.end_offsets)
        self._lengths.append(np.diff(tokens.document_offsets))
        self.num_documents += tokens.num_documents
        self.num_tokens += tokens.num_tokens
        ids = np.concatenate([self._waiting.token_ids, tokens.token_ids])
        ends = np.concatenate([self._waiting.end_offsets, tokens.end_offsets])
        while len(ids) >= _TOKENS_PER_SHARD:
            self._write_shard(ids[:_TOKENS_PER_SHARD], ends[:_TOKENS_PER_SHARD])
            ids, ends = ids[_TOKENS_PER_SHARD:], ends[_TOKENS_PER_SHARD:]
        self._waiting = TokenTable(ids, ends, np.array([0, len(ids)]))

    def finish(self) -> str:
        """Write the remaining tokens and the metadata; returns the digest of all arrays."""
        if self._waiting.num_tokens:
            self._write_shard(self._waiting.token_ids, self._waiting.end_offsets)
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        offsets = np.cumsum(lengths, dtype=np.int64)
        specs = token_arrays(self.num_tokens, self.num_documents)
        self._publish(specs[2].file_name(0), encode_shard(specs[2], 0, offsets))
        self._publish("zarr.json", group_metadata({}))
        for spec in specs:
            self._publish(f"{spec.name}/zarr.json", array_metadata(spec))
        return self._digests.of(offsets)

    def _write_shard(self, ids: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]) -> None:
        shard, rows = self._shards, self._shards * _TOKENS_PER_SHARD + len(ids)
        for spec, values in zip(token_arrays(rows, 0)[:2], (ids, ends), strict=True):
            self._publish(
                spec.file_name(shard), encode_shard(spec, shard, np.ascontiguousarray(values))
            )
        self._shards += 1

    def _publish(self, path: str, data: bytes) -> None:
        publish(self._location / path, data)
        self.files[path] = FileRecord.of(data)


class ArrayDigests:
    """The digest of tokens that are added in batches: SHA-256 over those of the three arrays."""

    def __init__(self) -> None:
        self._ids, self._ends = hashlib.sha256(), hashlib.sha256()

    def add(self, token_ids: npt.NDArray[np.int32], end_offsets: npt.NDArray[np.int32]) -> None:
        """Add the next tokens, int32 [n] each."""
        self._ids.update(np.ascontiguousarray(token_ids, "<i4").data)
        self._ends.update(np.ascontiguousarray(end_offsets, "<i4").data)

    def of(self, document_offsets: npt.NDArray[np.int64]) -> str:
        """The digest of all added tokens and the document offsets."""
        offsets = hashlib.sha256(np.ascontiguousarray(document_offsets, "<i8").data)
        states = (self._ids, self._ends, offsets)
        return hashlib.sha256(b"".join(state.digest() for state in states)).hexdigest()


def _damaged(location: Location) -> str:
    return (
        f"The tokens at {location} are missing or damaged. Run `fusestore verify --repair` with "
        "--model to make them again, or delete that folder: the next step that needs the tokens "
        "makes them again."
    )
