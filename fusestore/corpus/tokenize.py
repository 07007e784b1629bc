"""Tokens of a corpus, computed once per tokenizer and kept with the corpus.

Under `corpora/<corpus>/tokens/<first 16 digits of the tokenizer's digest>[-bos]/`:
`tokens.parquet` has one row a token (`token_ids`, `end_offsets`, both int32),
`documents.parquet` the D + 1 `document_offsets` (int64), `manifest.json` the identity.
"""

from __future__ import annotations

import hashlib
import io
import os

import numpy as np
import polars as pl

from fusestore.corpus.build import Corpus, open_corpus
from fusestore.corpus.manifest import TokensManifest
from fusestore.corpus.tokenizers import Tokenizer
from fusestore.corpus.tokens import TokenTable
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.publish import publish
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
    opened = Store.open(store)
    if isinstance(corpus, str):
        corpus = open_corpus(opened, corpus)
    name = tokenizer.digest[:16] + ("-bos" if add_bos else "")
    location = corpus.location / "tokens" / name
    try:
        manifest = TokensManifest.load(location / "manifest.json")
    except NotFoundError:
        manifest = None
    if manifest is not None:
        if (manifest.corpus_digest, manifest.tokenizer_digest, manifest.add_bos) == (
            corpus.digest,
            tokenizer.digest,
            add_bos,
        ):
            return _load(location, manifest)
        if keep:
            location.delete()
    tokens = tokenizer.encode(corpus.texts(), add_bos)
    if not keep:
        return tokens
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


def _load(location: Location, manifest: TokensManifest) -> TokenTable:
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
