"""Reads a distribution cache: rows by position or by document.

Opening reads the manifest alone. Every read checks the checksums of its chunks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.manifest import TOKENS_PART, CacheManifest, Fingerprint, content_digest
from fusestore.cache.row_reader import RowReader
from fusestore.cache.rows import Rows
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.copy import check_files_match
from fusestore.store.held_digest import check_digest
from fusestore.store.inventory import no_such
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenTable

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    from fusestore.cache.table import PositionTable


def open_cache(
    store: str | os.PathLike[str] | Location | Store,
    name: str,
    storage_options: Mapping[str, object] | None = None,
    *,
    digest: str | None = None,
) -> Cache:
    """Open a complete distribution cache: one object is read.

    Args:
        store: folder or URL of the store, or an open one.
        name: the cache's name.
        storage_options: of the URL's storage, such as `endpoint_url`; see `storage.options`.
        digest: `checksum` of its manifest (the SHA-256 of its content, not of the file), from the
            cache's author. All files are read once to check them, so the store must be local.

    Raises:
        NotFoundError: no such cache, or it is not complete; the message says what to do.
        CorruptionError: its manifest is damaged, or it is not that of the digest.
        InvalidInputError: a digest for a remote store.
    """
    opened = Store.open(store, storage_options)
    location = opened.cache(name)
    try:
        manifest = CacheManifest.load(location / "manifest.json")
    except NotFoundError as error:
        if (location / "fingerprint.json").exists():
            raise NotFoundError(
                f"Cache {name!r} in {opened.location} is not complete: its capture was stopped. "
                "Run the `fusestore capture` command that began it again; it continues."
            ) from error
        raise no_such(opened, "cache", name) from error
    if manifest.fingerprint.digest != manifest.fingerprint_digest:
        raise CorruptionError(
            f"{location}/manifest.json names fingerprint {manifest.fingerprint_digest} but holds "
            f"{manifest.fingerprint.digest}. Run `fusestore verify` on {location}."
        )
    if digest is not None:
        check_digest(digest, manifest.digest, location)
        _check_files(location, manifest)
    return Cache(location, manifest)


def _check_files(location: Location, manifest: CacheManifest) -> None:
    """Check every file against its receipt, and the receipts against the manifest."""
    if not location.is_local:
        raise InvalidInputError(
            f"{location} is remote, and its rows are read one by one, which no digest covers. Copy "
            "it with `fusestore pull --expect`, and open the copy."
        )
    parts = (TOKENS_PART, *map(shard_part, range(len(manifest.fingerprint.plan))))
    receipts = [Receipt.load(location / receipt_path(part)) for part in parts]
    if content_digest(receipts) != manifest.content_digest:
        raise CorruptionError(
            f"{location} has receipts that do not match its manifest. Run `fusestore verify` on it."
        )
    for receipt in receipts:
        check_files_match(location, receipt.files)


class Cache:
    """A complete distribution cache: `cache[a:b]` and `cache.document(i)` give `Rows`.

    Rows are those of tokens: a cache that keeps only supervised ones gives `absent_rows` for the
    others (no entries, tail and label NaN), which `kept` tells.

    Slow: `tokens` reads all tokens on first use. Read neighboring rows together, not one by one,
    because a chunk is decoded whole. Can be pickled, and used after a fork.
    """

    def __init__(self, location: Location, manifest: CacheManifest) -> None:
        self.location = location
        self.manifest = manifest
        self.reader = RowReader(location, manifest.fingerprint)

    def __len__(self) -> int:
        """Number of tokens of the corpus; each has a row, unless only supervised ones are kept."""
        return self.fingerprint.num_tokens

    def __repr__(self) -> str:
        fingerprint = self.fingerprint
        return (
            f"Cache({self.location.name!r} in {self.location.parent.parent}: "
            f"{fingerprint.num_rows:,} rows of {self.k} entries, "
            f"{fingerprint.num_documents:,} documents of corpus {fingerprint.corpus.name!r}, "
            f"{fingerprint.model.architecture} with {fingerprint.tokenizer_length:,} tokens)"
        )

    def _repr_html_(self) -> str:
        from fusestore.store.artifact_html import artifact_html

        return artifact_html(Store(self.location.parent.parent), "cache", self.location.name)

    @property
    def fingerprint(self) -> Fingerprint:
        """What the content depends on."""
        return self.manifest.fingerprint

    @property
    def digest(self) -> str:
        """Identifies the content; later stages refer to the cache by it."""
        return self.manifest.content_digest

    @property
    def k(self) -> int:
        """Entries per row."""
        return self.fingerprint.top_k

    @cached_property
    def skipped(self) -> frozenset[int]:
        """Corpus indices of documents without distributions."""
        return frozenset(self.manifest.skipped_documents)

    @property
    def kept(self) -> KeptRows:
        """Which tokens have a row."""
        return self.reader.kept

    @property
    def tokens(self) -> TokenTable:
        """The tokens that the model read, with BOS if it was added."""
        return self.reader.tokens

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is rows `[value[i], value[i + 1])`."""
        return self.reader.document_offsets

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of the tokens of rows `[start, stop)`, without reading the others."""
        return self.reader.read_tokens(start, stop)

    def __getitem__(self, rows: slice) -> Rows:
        """Rows `[a, b)` of all documents, concatenated; a step other than 1 is refused."""
        if not isinstance(rows, slice):
            raise InvalidInputError(
                f"A cache takes a slice of rows, as in cache[0:100], not {rows!r}."
            )
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise InvalidInputError(
                f"A cache is read without a step, not by {rows!r}. Use cache[start:stop]."
            )
        return self.reader.rows(start, max(start, stop))

    def document(self, index: int) -> Rows:
        """Rows of one document of the corpus.

        Raises:
            InvalidInputError: no such document.
        """
        if not 0 <= index < self.fingerprint.num_documents:
            raise InvalidInputError(
                f"There is no document {index} in {self.location}; "
                f"documents are 0 to {self.fingerprint.num_documents - 1}."
            )
        offsets = self.document_offsets
        return self.reader.rows(int(offsets[index]), int(offsets[index + 1]))

    def to_polars(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """The rows as a table, one line a token.

        A line takes about 72 + 8 k bytes, with `decode` 16 more for every entry, and while the
        table is made three times as much. What is asked for is read whole.

        Args:
            documents: index of one document, or consecutive ones, as in `range(0, 10)`; None for
                all.
            decode: add the columns `token` and `tokens`, the text of `token_id` and of `ids`.
                Bytes that are no characters are shown in hexadecimal.
            limit: most lines. Without it, a table of more than 4 GiB is refused.

        Returns:
            document, position, token_id: int32; start_offset, end_offset: int32, the bytes of the
            token in its document; ids: list of int32 and logprobs: list of float32, the kept
            entries by falling log-probability, null where the cache has no row; tail: float32,
            null if it is not known; label_logprob: float32, null where it is not known, as in a
            document's last row. Of samples also counts: list of int32, the draws that fell on
            each entry. With `decode` also token: string and tokens: list of string; null for ids
            that no token has.

        Raises:
            InvalidInputError: no such document, or too large a table.
            NotFoundError: `decode`, and the store has no vocabulary of the cache's tokenizer.
            CorruptionError: stored bytes are damaged.
        """
        return self._table(documents, limit, decode=decode).to_polars()

    def to_arrow(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pa.Table:
        """The table of `to_polars` as Arrow's, of the extra `notebook`; arguments as there.

        Raises:
            MissingDependencyError: pyarrow is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(documents, limit, decode=decode).to_arrow()

    def to_xarray(
        self,
        documents: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> xr.Dataset:
        """The numbers of `to_polars` over `position` and `entry`; arguments as there.

        Returns:
            Coordinates by position: document, document_position, token_id, start_offset,
            end_offset, with `decode` token. Variables: ids int32 (−1: no entry), logprobs float32
            (−inf: no entry), of samples counts int32 (0: no entry), tail and label_logprob float32
            (NaN: not known), has_row bool, with `decode` tokens (an empty text: no entry).

        Raises:
            MissingDependencyError: xarray, of the extra `notebook`, is not installed.
            InvalidInputError, NotFoundError, CorruptionError: as for `to_polars`.
        """
        return self._table(documents, limit, decode=decode).to_xarray()

    def _table(
        self, documents: int | range | None, limit: int | None, *, decode: bool
    ) -> PositionTable:
        # Not at the top, because workers read caches and must not import Polars.
        from fusestore.cache.table import cache_table, positions_of_documents, table_bytes
        from fusestore.tokenizers.vocabulary_table import load_vocabulary

        fingerprint, offsets = self.fingerprint, self.document_offsets
        num_bytes = table_bytes(self.k, decode=decode)
        place = f"cache {self.location.name!r}"
        first, last = positions_of_documents(offsets, documents, limit, num_bytes, place)
        vocabulary = None
        if decode:
            store = Store(self.location.parent.parent)
            vocabulary = load_vocabulary(store, fingerprint.tokenizer_digest)
        return cache_table(
            self.reader.rows(first, last),
            first,
            offsets,
            self.read_tokens(first, last),
            self.kept.mask(first, last),
            vocabulary,
            draws=self.k if fingerprint.selection == "sampled" else None,
            attributes={
                "kind": "cache",
                "name": self.location.name,
                "digest": self.digest,
                "corpus": fingerprint.corpus.name,
                "model": fingerprint.model.architecture,
                "tokenizer": fingerprint.tokenizer_digest,
                "vocab_size": fingerprint.model.vocab_size,
                "selection": fingerprint.selection,
                "top_k": self.k,
            },
        )
