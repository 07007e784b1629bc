"""Vocabularies as Parquet files of a store: `token_id`, `bytes`, `kind`, `roles`.

Beside `<first 16 digits of the tokenizer's digest>.parquet` a receipt of the same name in JSON
holds the file's checksum: alignment rests on these bytes, and Parquet would not notice a wrong one.
"""

from __future__ import annotations

import io
import os
from typing import cast

import polars as pl

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord, Receipt
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary import Role, TokenKind, Vocabulary

_DIGEST_KEY = "tokenizer_digest"

VOCABULARY_SCHEMA = pl.Schema(
    {
        "token_id": pl.Int32(),
        "bytes": pl.Binary(),
        "kind": pl.String(),
        "roles": pl.List(pl.String()),
    }
)
"""One row per id; `roles` is empty for most. The full digest is in the file's metadata."""


def save_vocabulary(
    store: str | os.PathLike[str] | Location | Store, vocabulary: Vocabulary
) -> Location:
    """Write the vocabulary under its tokenizer's digest; one that is there already is kept.

    Returns:
        The Parquet file.
    """
    location = Store.open(store).vocabulary(vocabulary.tokenizer_digest)
    if _is_there(location):
        return location
    remove_abandoned(location.parent)
    roles: list[list[str]] = [[] for _ in range(len(vocabulary))]
    for role, token_id in vocabulary.roles:
        roles[token_id].append(role)
    columns = {
        "token_id": range(len(vocabulary)),
        "bytes": vocabulary.token_bytes,
        "kind": vocabulary.kinds,
        "roles": roles,
    }
    buffer = io.BytesIO()
    pl.DataFrame(columns, schema=VOCABULARY_SCHEMA).write_parquet(
        buffer,
        compression="zstd",
        row_group_size=2**17,
        metadata={_DIGEST_KEY: vocabulary.tokenizer_digest},
    )
    data = buffer.getvalue()
    publish(location, data)
    receipt = Receipt(
        part="vocabulary",
        start=0,
        stop=len(vocabulary),
        fingerprint_digest=vocabulary.tokenizer_digest,
        files={location.name: FileRecord.of(data)},
    )
    publish(receipt_file(location), receipt.to_bytes())
    return location


def keep_vocabulary(store: Store, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's vocabulary unless it is there; then nothing of it is loaded."""
    if not _is_there(store.vocabulary(tokenizer.digest)):
        save_vocabulary(store, tokenizer.vocabulary)


def _is_there(location: Location) -> bool:
    # Not compared: another version of Polars may write the same table in other bytes.
    return location.exists() and receipt_file(location).exists()


def load_vocabulary(
    store: str | os.PathLike[str] | Location | Store, tokenizer_digest: str
) -> Vocabulary:
    """Read the vocabulary of a tokenizer, given its digest or the digest's first 16 digits.

    Raises:
        NotFoundError: the store does not hold it.
        CorruptionError: it does not match its checksum.
        InvalidInputError: the file is not a vocabulary, or another tokenizer's.
    """
    location = Store.open(store).vocabulary(tokenizer_digest)
    try:
        data = location.read_bytes()
        receipt = Receipt.load(receipt_file(location))
    except NotFoundError as error:
        raise NotFoundError(
            f"The store holds no vocabulary of tokenizer {tokenizer_digest[:16]} "
            f"({error}). Capturing a cache with that tokenizer writes it."
        ) from error
    if receipt.files != {location.name: FileRecord.of(data)}:
        raise CorruptionError(
            f"{location} does not match its checksum. `fusestore verify --repair` with --model "
            "writes it again."
        )
    try:
        table = pl.read_parquet(io.BytesIO(data))
        digest = pl.read_parquet_metadata(io.BytesIO(data)).get(_DIGEST_KEY, "")
    except pl.exceptions.PolarsError as error:
        raise InvalidInputError(f"{location} is not a Parquet file: {error}") from error
    if table.schema != VOCABULARY_SCHEMA or not digest.startswith(tokenizer_digest):
        raise InvalidInputError(
            f"{location} is not the vocabulary of tokenizer {tokenizer_digest}: found columns "
            f"{dict(table.schema)} of tokenizer {digest or 'unknown'}."
        )
    roles = sorted(
        (cast("Role", role), token_id)
        for token_id, names in table.filter(pl.col("roles").list.len() > 0)
        .select("token_id", "roles")
        .iter_rows()
        for role in names
    )
    return Vocabulary(
        digest,
        tuple(table["bytes"].to_list()),
        cast("tuple[TokenKind, ...]", tuple(table["kind"].to_list())),
        tuple(roles),
    )


def receipt_file(location: Location) -> Location:
    """The receipt of a vocabulary's Parquet file."""
    return location.parent / f"{location.name.removesuffix('.parquet')}.json"
