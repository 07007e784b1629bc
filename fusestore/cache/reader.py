"""Reads a distribution cache: rows by position or by document.

Opening reads the manifest alone. Every read checks the checksums of its chunks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kernels import SOUND, decode_gaps, decode_grid, decode_numbers
from fusestore.cache.layout import cache_arrays
from fusestore.cache.manifest import CacheManifest, Fingerprint
from fusestore.cache.rows import Rows
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import ArraySpec
from fusestore.store.codec import TAIL_STEP, logprobs_of_counts
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenTable

if TYPE_CHECKING:
    import polars as pl

_Ids = npt.NDArray[np.int32]
_Logs = npt.NDArray[np.float32]


def open_cache(
    store: str | os.PathLike[str] | Location | Store,
    name: str,
    storage_options: Mapping[str, str] | None = None,
) -> Cache:
    """Open a complete distribution cache: one object is read.

    Args:
        store: folder or URL of the store, or an open one.
        name: the cache's name.
        storage_options: for the fsspec filesystem of a URL.

    Raises:
        NotFoundError: no such cache, or it is not complete; the message says what to do.
        CorruptionError: its manifest is damaged.
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
        names = opened.names("caches")
        holds = f"It has: {', '.join(names)}." if names else "It has no caches."
        raise NotFoundError(
            f"There is no cache {name!r} in {opened.location}. {holds} "
            "Make one with `fusestore capture`."
        ) from error
    if manifest.fingerprint.digest != manifest.fingerprint_digest:
        raise CorruptionError(
            f"{location}/manifest.json names fingerprint {manifest.fingerprint_digest} but holds "
            f"{manifest.fingerprint.digest}. Run `fusestore verify` on {location}."
        )
    return Cache(location, manifest)


class RowReader:
    """Reads rows of a cache, complete or not; the shards that hold them must be written.

    Can be pickled; the copy opens its files again.
    """

    def __init__(self, location: Location, fingerprint: Fingerprint) -> None:
        self.location = location
        self.fingerprint = fingerprint
        self._receipts: dict[int, Receipt] = {}
        self._readers: dict[str, ArrayReader] = {}
        self._arrays = cache_arrays(fingerprint)

    def rows(self, start: int, stop: int) -> Rows:
        """Rows `[start, stop)`."""
        count = max(0, stop - start)
        ids = np.empty((count, self.fingerprint.top_k), np.int32)
        logprobs = np.empty((count, self.fingerprint.top_k), np.float32)
        if self.fingerprint.profile == "fast":
            self._fast(start, stop, ids, logprobs)
        elif self.fingerprint.codes_gaps:
            self._gaps(start, stop, ids, logprobs)
        else:
            self._numbers(start, stop, ids, logprobs)
        return Rows(ids, logprobs, self.tail(start, stop), self.label_logprob(start, stop))

    def _gaps(self, start: int, stop: int, ids: _Ids, logprobs: _Logs) -> None:
        """Decode differences and gaps; each value of the chunks is read once."""
        order, classes = self.id_order, self._row_classes(start, stop)
        step = self.fingerprint.logprob_step or math.nan
        numbers = self._chunks(self._arrays.ids, start, stop)
        differences = self._chunks(self._arrays.logprobs, start, stop)
        for (inside, to, values), (_, _, steps) in zip(numbers, differences, strict=True):
            bad = decode_gaps(
                values,
                steps,
                inside.start,
                classes[to],
                order.table,
                order.head,
                order.vocab_size,
                step,
                ids[to],
                logprobs[to],
            )
            self._check_decoded(bad, start + to.start)

    def _numbers(self, start: int, stop: int, ids: _Ids, logprobs: _Logs) -> None:
        order, classes = self.id_order, self._row_classes(start, stop)
        logprobs[:] = self._exact(self._read(self._arrays.logprobs, start, stop))
        for inside, to, values in self._chunks(self._arrays.ids, start, stop):
            bad = decode_numbers(
                values,
                inside.start,
                logprobs[to],
                classes[to],
                order.table,
                order.head,
                order.vocab_size,
                ids[to],
            )
            self._check_decoded(bad, start + to.start)

    def _fast(self, start: int, stop: int, ids: _Ids, logprobs: _Logs) -> None:
        for inside, to, values in self._chunks(self._arrays.ids, start, stop):
            ids[to] = values[0, inside]
        step = self.fingerprint.logprob_step
        for inside, to, values in self._chunks(self._arrays.logprobs, start, stop):
            if step is None:
                logprobs[to] = self._exact(values[0, inside])
            else:
                decode_grid(values[0, inside], step, logprobs[to])

    def _exact(self, values: npt.NDArray[Any]) -> _Logs:
        """float32 [n, k] of values without a grid: counts of draws, or float32 itself."""
        if self.fingerprint.selection == "sampled":
            return logprobs_of_counts(values, self.fingerprint.top_k)
        return values

    def _row_classes(self, start: int, stop: int) -> npt.NDArray[np.uint16]:
        """uint16 [n]: the class of the token before each row."""
        token_ids = self._reader(self._arrays.token_ids, None).read(start, stop)
        vocab_size = self.fingerprint.model.vocab_size
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
            raise CorruptionError(
                f"{self.location}/token_ids holds ids from {token_ids.min()} to {token_ids.max()} "
                f"in rows {start} to {stop}, outside a vocabulary of {vocab_size}. "
                "Run `fusestore verify`."
            )
        # Takes half the time of `token_class[token_ids]`.
        return self.id_order.token_class.take(token_ids)

    def _chunks(
        self, spec: ArraySpec, start: int, stop: int
    ) -> Iterator[tuple[slice, slice, npt.NDArray[Any]]]:
        """Each chunk that overlaps rows `[start, stop)`.

        Yields:
            The overlap as a slice of the chunk's rows, the overlap as a slice of the requested
            rows, and the chunk's values as `ArrayReader.chunks` yields them.
        """
        for first, values in self._row_reader(spec).chunks(start, stop):
            low, high = max(start, first), min(stop, first + spec.rows_per_chunk)
            yield slice(low - first, high - first), slice(low - start, high - start), values

    def _check_decoded(self, bad: int, first: int) -> None:
        if bad != SOUND:
            raise CorruptionError(
                f"{self.location}/ids holds a number in row {first + bad} that stands for no id of "
                f"a vocabulary of {self.fingerprint.model.vocab_size}. Run `fusestore verify`."
            )

    def tail(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start]: the tails, without decoding the entries."""
        values = self._read(self._arrays.tail, start, stop)
        if self.fingerprint.logprob_step is None:
            return values
        logs = np.empty(len(values), np.float32)
        decode_grid(values[None], TAIL_STEP, logs[None])
        return logs

    def label_logprob(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start]: the label log-probabilities, without decoding the entries."""
        values: npt.NDArray[np.float32] = self._read(self._arrays.label_logprob, start, stop)
        return values

    @cached_property
    def id_order(self) -> IdOrder:
        """The numbering of ids; the profile `fast` has none.

        Raises:
            CorruptionError: the stored arrays are not a valid order.
        """
        arrays = [self._read_whole(spec) for spec in self._arrays.id_order]
        try:
            return IdOrder(*arrays)
        except InvalidInputError as error:
            raise CorruptionError(
                f"{self.location} holds no valid order of ids: {error} Run `fusestore verify`."
            ) from error

    @cached_property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is rows `[value[i], value[i + 1])`."""
        return self._read_whole(self._arrays.document_offsets)

    @cached_property
    def tokens(self) -> TokenTable:
        """The tokens that the model read; all are loaded on first use."""
        return TokenTable(
            token_ids=self._read_whole(self._arrays.token_ids),
            end_offsets=self._read_whole(self._arrays.end_offsets),
            document_offsets=self.document_offsets,
        )

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of the tokens of rows `[start, stop)`, without reading the others."""
        return (
            self._reader(self._arrays.token_ids, None).read(start, stop),
            self._reader(self._arrays.end_offsets, None).read(start, stop),
        )

    def _read_whole(self, spec: ArraySpec) -> npt.NDArray[Any]:
        return self._reader(spec, None).read(0, spec.shape[0])

    def _read(self, spec: ArraySpec, start: int, stop: int) -> npt.NDArray[Any]:
        return self._row_reader(spec).read(start, stop)

    def _row_reader(self, spec: ArraySpec) -> ArrayReader:
        return self._reader(spec, _ReceiptSize(self, spec))

    def _reader(self, spec: ArraySpec, size: _ReceiptSize | None) -> ArrayReader:
        reader = self._readers.get(spec.name)
        if reader is None:
            reader = self._readers[spec.name] = ArrayReader(self.location, spec, size)
        return reader

    def receipt(self, shard: int) -> Receipt:
        """The receipt of a shard, read once.

        Raises:
            CorruptionError: missing, damaged, or of another fingerprint.
        """
        if shard not in self._receipts:
            file = self.location / receipt_path(shard_part(shard))
            try:
                receipt = Receipt.load(file)
            except NotFoundError as error:
                raise CorruptionError(
                    f"{file} is missing. Run `fusestore verify` on {self.location}."
                ) from error
            bounds = self.fingerprint.plan.bounds(shard)
            if (
                receipt.fingerprint_digest != self.fingerprint.digest
                or (receipt.start, receipt.stop) != bounds
            ):
                raise CorruptionError(
                    f"{file} belongs to another cache or shard. "
                    f"Run `fusestore verify` on {self.location}."
                )
            self._receipts[shard] = receipt
        return self._receipts[shard]


class _ReceiptSize:
    """Size of an array's file of a shard, from the shard's receipt. A class, to be picklable."""

    def __init__(self, rows: RowReader, spec: ArraySpec) -> None:
        self.rows = rows
        self.spec = spec

    def __call__(self, shard: int) -> int:
        file = self.spec.file_name(shard)
        record = self.rows.receipt(shard).files.get(file)
        if record is None:
            raise CorruptionError(
                f"The receipt of shard {shard} of {self.rows.location} does not list {file}. "
                "Run `fusestore verify`."
            )
        return record.num_bytes


class Cache:
    """A complete distribution cache: `cache[a:b]` and `cache.document(i)` give `Rows`.

    Slow: `tokens` reads all tokens on first use. Read neighboring rows together, not one by one,
    because a chunk is decoded whole. Can be pickled, and used after a fork.
    """

    def __init__(self, location: Location, manifest: CacheManifest) -> None:
        self.location = location
        self.manifest = manifest
        self.reader = RowReader(location, manifest.fingerprint)

    def __len__(self) -> int:
        """Number of rows, one per token of the corpus."""
        return self.fingerprint.num_tokens

    def __repr__(self) -> str:
        fingerprint = self.fingerprint
        return (
            f"Cache({self.location.name!r} in {self.location.parent.parent}: {len(self):,} rows of "
            f"{self.k} entries, {fingerprint.num_documents:,} documents of corpus "
            f"{fingerprint.corpus.name!r}, {fingerprint.model.architecture} with "
            f"{fingerprint.tokenizer_length:,} tokens)"
        )

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

    def to_polars(self, document: int | None = None, *, decode: bool = False) -> pl.DataFrame:
        """The rows as a table, one row a token. Slow for a whole cache: it reads everything.

        Args:
            document: index of the one document to read; None for all.
            decode: add the columns `token` and `tokens`, the text of `token_id` and of `ids`.
                Bytes that are no characters are shown in hexadecimal.

        Returns:
            document, position, token_id, end_offset: int32; ids: list of int32 and logprobs: list
            of float32, the kept entries by falling log-probability; tail: float32; label_logprob:
            float32, null in a document's last row. With `decode` also token: string and tokens:
            list of string; null for ids that no token has.

        Raises:
            InvalidInputError: no such document.
            NotFoundError: `decode`, and the store has no vocabulary of the cache's tokenizer.
            CorruptionError: stored bytes are damaged.
        """
        # Not at the top, because workers read caches and must not import Polars.
        from fusestore.cache.table import rows_table
        from fusestore.tokenizers.vocabulary_table import load_vocabulary

        rows = self[:] if document is None else self.document(document)
        first = 0 if document is None else int(self.document_offsets[document])
        token_ids, end_offsets = self.read_tokens(first, first + len(rows))
        vocabulary = None
        if decode:
            store = Store(self.location.parent.parent)
            vocabulary = load_vocabulary(store, self.fingerprint.tokenizer_digest)
        return rows_table(rows, first, self.document_offsets, token_ids, end_offsets, vocabulary)
