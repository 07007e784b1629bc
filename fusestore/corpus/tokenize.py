"""Tokens of a corpus, computed once per tokenizer and kept with the corpus.

Under `corpora/<corpus>/tokens/<first 16 digits of the tokenizer's digest>[-bos]/`:
`tokens.parquet` has one row a token (`token_ids`, `end_offsets`, both int32),
`documents.parquet` the D + 1 `document_offsets` (int64), `manifest.json` the identity.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.corpus.build import Corpus, open_corpus
from fusestore.corpus.manifest import TokensManifest
from fusestore.corpus.tokenizers import Tokenizer
from fusestore.corpus.tokens import TokenStream, TokenTable
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.storage.shards import FileRecord
from fusestore.storage.store import Store
from fusestore.storage.urls import Location

TOKENS_SCHEMA = pl.Schema({"token_ids": pl.Int32(), "end_offsets": pl.Int32()})
"""`tokens.parquet`: one row a token, in corpus order."""

OFFSETS_SCHEMA = pl.Schema({"document_offsets": pl.Int64()})
"""`documents.parquet`: document i is the tokens from row i's offset to row i + 1's."""


def corpus_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
    *,
    keep: bool = True,
) -> TokenTable:
    """Tokens of every document of a corpus; read back where they are kept already.

    Tokens that were left over from another corpus of the same name are replaced.

    Args:
        store: the store that holds the corpus.
        corpus: the corpus or its name.
        tokenizer: the tokenizer.
        add_bos: start every document with BOS.
        keep: write them where they are not kept yet; otherwise the store is left as it is.

    Raises:
        NotFoundError: no such corpus.
        CorruptionError: the kept tokens are damaged.
        IncompatibleError: BOS of a tokenizer without one.
    """
    location, manifest = _kept_tokens(store, corpus, tokenizer, add_bos)
    if manifest is not None:
        return load_tokens(location, manifest)
    if not keep:
        return tokenizer.encode(_opened(store, corpus).texts(), add_bos)
    return _make_tokens(store, corpus, tokenizer, add_bos)


def corpus_token_stream(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
) -> TokenStream:
    """`corpus_tokens`, read a few documents at a time where they are kept already.

    Arguments and errors as for `corpus_tokens`. Kept in memory are the document offsets, and of a
    remote store the compressed file.
    """
    location, manifest = _kept_tokens(store, corpus, tokenizer, add_bos)
    if manifest is None:
        return _make_tokens(store, corpus, tokenizer, add_bos)
    return _StoredTokens(location, manifest)


def find_tokens(corpus: Corpus, tokenizer_digest: str, num_tokens: int) -> TokenStream:
    """The kept tokens of a tokenizer that is not at hand; with or without BOS, by their number.

    Raises:
        NotFoundError: the corpus has none.
        CorruptionError: they are damaged.
    """
    for suffix in ("", "-bos"):
        location = corpus.location / "tokens" / (tokenizer_digest[:16] + suffix)
        try:
            manifest = TokensManifest.load(location / "manifest.json")
        except NotFoundError:
            continue
        found = (manifest.corpus_digest, manifest.tokenizer_digest, manifest.num_tokens)
        if found == (corpus.digest, tokenizer_digest, num_tokens):
            return _StoredTokens(location, manifest)
    raise NotFoundError(
        f"Corpus {corpus.name!r} does not hold its {num_tokens:,} tokens of tokenizer "
        f"{tokenizer_digest[:16]}. Run `fusestore align` with that target again; it keeps them."
    )


def _kept_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
) -> tuple[Location, TokensManifest | None]:
    """Where the tokens lie, and their manifest if they are there and of this corpus."""
    corpus = _opened(store, corpus)
    location = corpus.location / "tokens" / (tokenizer.digest[:16] + ("-bos" if add_bos else ""))
    try:
        manifest = TokensManifest.load(location / "manifest.json")
    except NotFoundError:
        return location, None
    found = (manifest.corpus_digest, manifest.tokenizer_digest, manifest.add_bos)
    return location, manifest if found == (corpus.digest, tokenizer.digest, add_bos) else None


def _opened(store: str | os.PathLike[str] | Location | Store, corpus: str | Corpus) -> Corpus:
    return open_corpus(store, corpus) if isinstance(corpus, str) else corpus


def _make_tokens(
    store: str | os.PathLike[str] | Location | Store,
    corpus: str | Corpus,
    tokenizer: Tokenizer,
    add_bos: bool,
) -> TokenTable:
    corpus = _opened(store, corpus)
    location, _ = _kept_tokens(store, corpus, tokenizer, add_bos)
    if (location / "manifest.json").exists():
        location.delete()
    remove_abandoned(location)
    tokens = tokenizer.encode(corpus.texts(), add_bos)
    TokensManifest(
        corpus_digest=corpus.digest,
        tokenizer_digest=tokenizer.digest,
        add_bos=add_bos,
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
        arrays_digest=_arrays_digest(tokens),
        files=_save(location, tokens),
    ).save(location / "manifest.json")
    return tokens


class _StoredTokens:
    """A `TokenStream` over the Parquet files."""

    def __init__(self, location: Location, manifest: TokensManifest) -> None:
        self._location = location
        file = location / "tokens.parquet"
        try:
            self._file = file.path if file.is_local else io.BytesIO(file.read_bytes())
            found = _file_digest(self._file)
            documents = (location / "documents.parquet").read_bytes()
        except (NotFoundError, FileNotFoundError) as error:
            raise CorruptionError(_damaged(location)) from error
        expected = manifest.files
        if (
            found != expected["tokens.parquet"].sha256
            or FileRecord.of(documents) != expected["documents.parquet"]
        ):
            raise CorruptionError(_damaged(location))
        offsets = pl.read_parquet(io.BytesIO(documents))["document_offsets"]
        self._offsets: npt.NDArray[np.int64] = offsets.to_numpy()

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is tokens `[value[i], value[i + 1])`."""
        return self._offsets

    def documents(self, start: int, stop: int) -> TokenTable:
        """The tokens of documents `[start, stop)`."""
        offsets = self._offsets[start : stop + 1]
        first = int(offsets[0])
        rows = pl.scan_parquet(self._file).slice(first, int(offsets[-1]) - first).collect()
        return TokenTable(
            rows["token_ids"].to_numpy(), rows["end_offsets"].to_numpy(), offsets - first
        )


def _file_digest(file: Path | io.BytesIO) -> str:
    if isinstance(file, io.BytesIO):
        return hashlib.sha256(file.getbuffer()).hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _save(location: Location, tokens: TokenTable) -> dict[str, FileRecord]:
    """Write the tables; returns what each file holds."""
    rows = pl.DataFrame(
        {"token_ids": tokens.token_ids, "end_offsets": tokens.end_offsets}, schema=TOKENS_SCHEMA
    )
    offsets = pl.DataFrame({"document_offsets": tokens.document_offsets}, schema=OFFSETS_SCHEMA)
    files = {}
    for file, table in (("tokens.parquet", rows), ("documents.parquet", offsets)):
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd", row_group_size=2**20)
        publish(location / file, buffer.getvalue())
        files[file] = FileRecord.of(buffer.getvalue())
    return files


def load_tokens(location: Location, manifest: TokensManifest) -> TokenTable:
    """The tokens kept in a folder.

    Raises:
        CorruptionError: they are not those of the manifest.
    """
    try:
        tokens = pl.read_parquet(io.BytesIO((location / "tokens.parquet").read_bytes()))
        documents = pl.read_parquet(io.BytesIO((location / "documents.parquet").read_bytes()))
        tokens.match_to_schema(TOKENS_SCHEMA)
        documents.match_to_schema(OFFSETS_SCHEMA)
        table = TokenTable(
            tokens["token_ids"].to_numpy(writable=True),
            tokens["end_offsets"].to_numpy(writable=True),
            documents["document_offsets"].to_numpy(writable=True),
        )
    except (NotFoundError, InvalidInputError, pl.exceptions.PolarsError) as error:
        raise CorruptionError(_damaged(location)) from error
    if _arrays_digest(table) != manifest.arrays_digest:
        raise CorruptionError(_damaged(location))
    return table


def _damaged(location: Location) -> str:
    return (
        f"The tokens at {location} are missing or damaged. `fusestore verify --repair` with "
        "--model makes them again; so does the next step that needs them, once that folder is "
        "deleted."
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
