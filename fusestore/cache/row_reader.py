"""Decodes the rows of a distribution cache, complete or not, from the shards that are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.kernels import SOUND, decode_gaps, decode_grid, decode_numbers
from fusestore.cache.layout import cache_arrays
from fusestore.cache.manifest import Fingerprint
from fusestore.cache.rows import Rows, absent_rows
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.array_reader import ArrayReader
from fusestore.store.arrays import ArraySpec
from fusestore.store.codec import TAIL_STEP, logprobs_of_counts
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenTable, offsets_problem

_Ids = npt.NDArray[np.int32]
_Logs = npt.NDArray[np.float32]


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
        """The rows of tokens `[start, stop)`, with `absent_rows` for those that are not kept."""
        first, last = self.kept.rows_of(start, stop)
        kept = self.kept_rows(first, last)
        if len(kept) == max(0, stop - start):
            return kept
        self._reader(self._arrays.token_ids, None).check_there(start, stop)
        rows = absent_rows(stop - start, self.fingerprint.top_k)
        places = self.kept.tokens(first, last) - start
        for field in fields(Rows):
            getattr(rows, field.name)[places] = getattr(kept, field.name)
        return rows

    def kept_rows(self, start: int, stop: int) -> Rows:
        """The kept rows `[start, stop)`, counted without the others."""
        count = max(0, stop - start)
        for spec in (self._arrays.ids, self._arrays.logprobs):
            self._row_reader(spec).check_there(start, start + count)
        ids = np.empty((count, self.fingerprint.top_k), np.int32)
        logprobs = np.empty((count, self.fingerprint.top_k), np.float32)
        if self.fingerprint.profile == "fast":
            self._fast(start, stop, ids, logprobs)
        elif self.fingerprint.codes_gaps:
            self._gaps(start, stop, ids, logprobs)
        else:
            self._numbers(start, stop, ids, logprobs)
        return Rows(
            ids,
            logprobs,
            self._tail(start, stop),
            self._read(self._arrays.label_logprob, start, stop),
        )

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
            block = values[0, inside]
            # The other profiles check each number that they decode.
            vocab_size = self.fingerprint.model.vocab_size
            if block.size and int(block.max()) >= vocab_size:
                bad = np.flatnonzero((block >= vocab_size).any(axis=1))[0]
                self._check_decoded(int(bad), start + to.start)
            ids[to] = block
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
        tokens = self.kept.tokens(start, stop)
        first, last = (int(tokens[0]), int(tokens[-1]) + 1) if len(tokens) else (0, 0)
        token_ids = self._reader(self._arrays.token_ids, None).read(first, last)
        if last - first > len(tokens):
            token_ids = token_ids[tokens - first]
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

    def _tail(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start]: the tails of kept rows, without decoding the entries."""
        values = self._read(self._arrays.tail, start, stop)
        if values.dtype == np.float32:
            return values
        logs = np.empty(len(values), np.float32)
        decode_grid(values[None], TAIL_STEP, logs[None])
        return logs

    def label_logprob(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """float32 [stop - start]: the label log-probabilities of the rows of tokens, NaN for none.

        The entries are not decoded.
        """
        first, last = self.kept.rows_of(start, stop)
        self._reader(self._arrays.token_ids, None).check_there(start, stop)
        values = np.full(stop - start, np.nan, np.float32)
        values[self.kept.tokens(first, last) - start] = self._read(
            self._arrays.label_logprob, first, last
        )
        return values

    @cached_property
    def kept(self) -> KeptRows:
        """Which tokens have a row.

        Raises:
            CorruptionError: the stored runs do not fit the fingerprint.
        """
        fingerprint = self.fingerprint
        if fingerprint.kept is None:
            return KeptRows.all(fingerprint.num_tokens)
        (spec,) = self._arrays.row_runs
        runs = self._read_whole(spec)
        try:
            kept = KeptRows(runs)
        except InvalidInputError as error:
            raise self._bad_runs(str(error)) from error
        if runs[-1, 1] > fingerprint.num_tokens or kept.num_rows != fingerprint.num_rows:
            raise self._bad_runs(
                f"They name {kept.num_rows:,} rows of tokens up to {runs[-1, 1]:,}; the "
                f"fingerprint has {fingerprint.num_rows:,} rows of {fingerprint.num_tokens:,}."
            )
        return kept

    def _bad_runs(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.location}/row_runs is damaged: {problem} Run `fusestore verify`."
        )

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
        """int64 [D + 1]: document i is rows `[value[i], value[i + 1])`.

        Raises:
            CorruptionError: they do not cover the tokens from first to last.
        """
        offsets = self._read_whole(self._arrays.document_offsets)
        problem = offsets_problem(offsets, self.fingerprint.num_tokens)
        if problem is not None:
            raise CorruptionError(
                f"{self.location}/document_offsets is damaged: they {problem}. "
                "Run `fusestore verify`."
            )
        return offsets

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
        return self._reader(spec, self._recorded_files)

    def _reader(
        self, spec: ArraySpec, records: Callable[[int], Mapping[str, FileRecord]] | None
    ) -> ArrayReader:
        reader = self._readers.get(spec.name)
        if reader is None:
            reader = self._readers[spec.name] = ArrayReader(self.location, spec, records)
        return reader

    def _recorded_files(self, shard: int) -> Mapping[str, FileRecord]:
        return self.receipt(shard).files

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
