"""Tokens of a corpus, computed once per tokenizer and kept with the corpus.

Under `corpora/<corpus>/tokens/<first 16 digits of the tokenizer's digest>[-bos]/` lies a Zarr v3
group: `token_ids` and `end_offsets` (int32, one a token), `document_offsets` (int64, D + 1).
`manifest.json` has the identity. Any stretch can be read by itself, from a disk or a URL, and every
chunk carries a checksum.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.corpus.build import Corpus, open_corpus
from fusestore.corpus.manifest import TokensManifest
from fusestore.corpus.tokenizers import Tokenizer
from fusestore.corpus.tokens import TokenTable
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.arrays import (
    ArrayReader,
    ArraySpec,
    array_metadata,
    encode_shard,
    group_metadata,
)
from fusestore.storage.publish import publish
from fusestore.storage.shards import FileRecord
from fusestore.storage.store import Store
from fusestore.storage.urls import Location

_TOKENS_PER_CHUNK = 8_192
_TOKENS_PER_SHARD = 1_048_576


class StoredTokens:
    """Tokens of every document of a corpus in one tokenizer, read piece by piece.

    A `TokenReader`. Opening reads the manifest; can be pickled.
    """

    def __init__(self, location: Location, manifest: TokensManifest) -> None:
        self.location = location
        self.manifest = manifest
        self._readers = [
            ArrayReader(location, spec)
            for spec in _arrays(manifest.num_tokens, manifest.num_documents)
        ]

    @property
    def digest(self) -> str:
        """SHA-256 of all ids and offsets."""
        return self.manifest.arrays_digest

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is tokens `[value[i], value[i + 1])`."""
        return self._read(2, 0, self.manifest.num_documents + 1)

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
            CorruptionError: they are missing, damaged or not what was written.
        """
        try:
            table = TokenTable(
                *self.read_tokens(0, self.manifest.num_tokens), self.document_offsets
            )
        except InvalidInputError as error:
            raise CorruptionError(_damaged(self.location)) from error
        if _arrays_digest(table) != self.digest:
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
) -> TokenTable:
    """Tokens of every document of a corpus, all at once; see `store_corpus_tokens`."""
    return store_corpus_tokens(store, corpus, tokenizer, add_bos).table()


def store_corpus_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
) -> StoredTokens:
    """The kept tokens of a corpus; made first where they are not there.

    Tokens that were left over from another corpus of the same name are replaced.

    Args:
        store: the store that holds the corpus.
        corpus: the corpus or its name.
        tokenizer: the tokenizer.
        add_bos: start every document with BOS.

    Raises:
        NotFoundError: no such corpus.
        CorruptionError: the kept tokens are damaged.
        IncompatibleError: BOS of a tokenizer without one.
    """
    opened = Store.open(store)
    if isinstance(corpus, str):
        corpus = open_corpus(opened, corpus)
    location = _folder(corpus, tokenizer.digest, add_bos)
    kept = _open(location)
    if kept is not None:
        if _is_of(kept.manifest, corpus, tokenizer.digest) and kept.manifest.add_bos == add_bos:
            return kept
        location.delete()
    tokens = tokenizer.encode(corpus.texts(), add_bos)
    manifest = TokensManifest(
        corpus_digest=corpus.digest,
        tokenizer_digest=tokenizer.digest,
        add_bos=add_bos,
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
        arrays_digest=_arrays_digest(tokens),
        files=_save(location, tokens),
    )
    manifest.save(location / "manifest.json")
    return StoredTokens(location, manifest)


def find_corpus_tokens(corpus: Corpus, tokenizer_digest: str) -> list[StoredTokens]:
    """The corpus's tokens that are kept in this tokenizer: without BOS, with it, both or none."""
    found = (_open(_folder(corpus, tokenizer_digest, add_bos)) for add_bos in (False, True))
    return [
        tokens
        for tokens in found
        if tokens is not None and _is_of(tokens.manifest, corpus, tokenizer_digest)
    ]


def _folder(corpus: Corpus, tokenizer_digest: str, add_bos: bool) -> Location:
    return corpus.location / "tokens" / (tokenizer_digest[:16] + ("-bos" if add_bos else ""))


def _open(location: Location) -> StoredTokens | None:
    try:
        return StoredTokens(location, TokensManifest.load(location / "manifest.json"))
    except NotFoundError:
        return None


def _is_of(manifest: TokensManifest, corpus: Corpus, tokenizer_digest: str) -> bool:
    return (manifest.corpus_digest, manifest.tokenizer_digest) == (corpus.digest, tokenizer_digest)


def _arrays(num_tokens: int, num_documents: int) -> tuple[ArraySpec, ArraySpec, ArraySpec]:
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


def _save(location: Location, tokens: TokenTable) -> dict[str, FileRecord]:
    """Write the arrays; returns what each file holds."""
    specs = _arrays(tokens.num_tokens, tokens.num_documents)
    files = {}
    metadata = {"zarr.json": group_metadata({})}
    metadata |= {f"{spec.name}/zarr.json": array_metadata(spec) for spec in specs}
    for path, data in metadata.items():
        publish(location / path, data)
        files[path] = FileRecord.of(data)
    values: list[npt.NDArray[Any]] = [
        tokens.token_ids,
        tokens.end_offsets,
        tokens.document_offsets,
    ]
    for spec, array in zip(specs, values, strict=True):
        for shard in range(spec.num_files):
            data = encode_shard(spec, shard, array[slice(*spec.rows_of(shard))])
            publish(location / spec.file_name(shard), data)
            files[spec.file_name(shard)] = FileRecord.of(data)
    return files


def _damaged(location: Location) -> str:
    return (
        f"The tokens at {location} are missing or damaged. Delete that folder; the next step "
        "that needs them makes them again."
    )


def _arrays_digest(tokens: TokenTable) -> str:
    state = hashlib.sha256()
    for array, dtype in (
        (tokens.token_ids, "<i4"),
        (tokens.end_offsets, "<i4"),
        (tokens.document_offsets, "<i8"),
    ):
        state.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    return state.hexdigest()
