"""Vocabularies in a store, by their tokenizer's digest so that none is written twice.

vocabularies/<first 16 digits of the tokenizer's digest>/fingerprint.json      the whole digest
                                                         vocabulary.parquet    see below
                                                         manifest.json         written last

The manifest holds the table's checksum: alignment depends on these bytes, and Parquet does not
notice a wrong byte.
"""

from __future__ import annotations

import io
import os
from typing import cast, get_args

import polars as pl

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, remove_abandoned, sync_folders
from fusestore.store.artifact_files import FINGERPRINT_FILE, MANIFEST_FILE
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.foreign_table import read_foreign_table
from fusestore.store.layout import Store
from fusestore.store.receipts import FileRecord
from fusestore.tokenizers.manifest import VocabularyFingerprint, VocabularyManifest
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary import Role, TokenKind, Vocabulary

TABLE_FILE = "vocabulary.parquet"

_DIGEST_KEY = "tokenizer_digest"
_REMEDY = "`fusestore verify --repair` with --model writes it again."

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
    """Write the vocabulary under its tokenizer's digest; an existing one is kept.

    Returns:
        Its folder.
    """
    folder = Store.open(store).vocabulary(vocabulary.tokenizer_digest)
    if _is_complete(folder):
        return folder
    fingerprint = VocabularyFingerprint(tokenizer_digest=vocabulary.tokenizer_digest)
    write_fingerprint(folder, fingerprint, "Vocabulary")
    remove_abandoned(folder)
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
    publish(folder / TABLE_FILE, data)
    manifest = VocabularyManifest(
        fingerprint=fingerprint,
        num_tokens=len(vocabulary),
        files={
            FINGERPRINT_FILE: FileRecord.of(fingerprint.to_bytes()),
            TABLE_FILE: FileRecord.of(data),
        },
    )
    sync_folders(folder)
    publish(folder / MANIFEST_FILE, manifest.to_bytes())
    return folder


def load_vocabulary_manifest(store: Store, tokenizer_digest: str) -> VocabularyManifest:
    """The manifest of a tokenizer's vocabulary, given its digest or the digest's first 16 digits.

    Raises:
        NotFoundError: the store does not hold it.
        CorruptionError, InvalidInputError: it is damaged, or of another tokenizer.
    """
    file = store.vocabulary(tokenizer_digest) / MANIFEST_FILE
    try:
        manifest = VocabularyManifest.load(file)
    except NotFoundError as error:
        raise NotFoundError(
            f"The store holds no vocabulary of tokenizer {tokenizer_digest[:16]} "
            f"({error}). Capturing a cache with that tokenizer writes it."
        ) from error
    actual = manifest.fingerprint.tokenizer_digest
    if not actual.startswith(tokenizer_digest):
        raise InvalidInputError(
            f"{file} is not the vocabulary of tokenizer {tokenizer_digest}, but of {actual}."
        )
    return manifest


def keep_vocabulary(store: Store, tokenizer: Tokenizer) -> None:
    """Write the tokenizer's vocabulary unless the store has it, without loading it then."""
    if not _is_complete(store.vocabulary(tokenizer.digest)):
        save_vocabulary(store, tokenizer.vocabulary)


def _is_complete(folder: Location) -> bool:
    # Not compared: another version of Polars may write the same table in other bytes.
    return (folder / MANIFEST_FILE).exists() and (folder / TABLE_FILE).exists()


def _problem(table: pl.DataFrame, num_tokens: int) -> str | None:
    """Why a table of the right columns is no vocabulary of that size; None if it is one."""
    if len(table) != num_tokens:
        return f"has {len(table):,} rows; its manifest says {num_tokens:,}"
    if not (table["token_id"] == pl.int_range(len(table), eager=True)).all():
        return "does not list the ids from 0, one after the other"
    if table["bytes"].null_count() or table["roles"].null_count():
        return "has ids without bytes or roles"
    if not set(table["kind"].unique()) <= set(get_args(TokenKind)):
        return "has ids of an unknown kind"
    roles = table["roles"].explode().drop_nulls().unique()
    if not set(roles) <= set(get_args(Role)):
        return "has ids of an unknown role"
    return None


def load_vocabulary(
    store: str | os.PathLike[str] | Location | Store, tokenizer_digest: str
) -> Vocabulary:
    """Read the vocabulary of a tokenizer, given its digest or the digest's first 16 digits.

    Raises:
        NotFoundError: the store does not hold it.
        CorruptionError: it does not match its checksum.
        InvalidInputError: the file is not a vocabulary, or of another tokenizer.
    """
    opened = Store.open(store)
    manifest = load_vocabulary_manifest(opened, tokenizer_digest)
    location = opened.vocabulary(tokenizer_digest) / TABLE_FILE
    record = manifest.files.get(TABLE_FILE)
    table, data = read_foreign_table(location, record, VOCABULARY_SCHEMA, None, _REMEDY)
    digest = pl.read_parquet_metadata(io.BytesIO(data)).get(_DIGEST_KEY, "")
    if digest != manifest.fingerprint.tokenizer_digest:
        raise InvalidInputError(
            f"{location} is not the vocabulary of tokenizer {tokenizer_digest}, but of tokenizer "
            f"{digest[:64] or 'unknown'}."
        )
    problem = _problem(table, manifest.num_tokens)
    if problem is not None:
        raise CorruptionError(f"{location} {problem}. {_REMEDY}")
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
