"""DistillKit's samples: Parquet files `data_{i}.parquet` beside `compression_config.yaml`.

    input_ids              list of integers [n]
    attention_mask         list of integers [n]; optional. In packed sets the number of the document
    compressed_logprobs    list [m] of lists of bytes: see `distillkit_codec`
    bytepacked_indices     list [m] of lists of bytes

or, without a codec,

    token_ids, top_values  lists [m] of lists [k]

or, in the first layout, `packed_indices`, `exact_values` and `coeffs`: see `distillkit_first`.

Row i is the distribution for token i + 1, and the last token has none: m = n − 1. In packed sets m
may be n. Where a rank is missing its id is not initialized.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.interop.distillkit_codec import CompressionConfig, decode_values, unpack
from fusestore.interop.distillkit_first import FirstConfig, decode_first_values, unpack_first_ids
from fusestore.interop.foreign import (
    TOLERANCE,
    Floats,
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    Ids,
    ReadJob,
    labels_of,
    rows_of_logits,
    rows_of_logprobs,
)
from fusestore.interop.records import (
    TABLE_SUFFIXES,
    Record,
    integers,
    matrix,
    needed,
    read_records,
    words,
)

CONFIG_FILE = "compression_config.yaml"

_COMPRESSED = ("compressed_logprobs", "bytepacked_indices")
_PLAIN = ("token_ids", "top_values")
_FIRST = ("packed_indices", "exact_values", "coeffs")
_MAX_CONFIG = 2**20


class DistillKit(ForeignFormat):
    """See the module."""

    suffixes = (*TABLE_SUFFIXES[:4], CONFIG_FILE)

    def files(self, path: Path) -> list[Path]:
        """The configuration beside a file belongs to it."""
        found = super().files(path)
        beside = path.parent / CONFIG_FILE
        return [beside, *found] if path.is_file() and beside.exists() else found

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a document of each record."""
        configs: dict[Path, _Config] = {}
        for file in files:
            if file.path.name == CONFIG_FILE:
                configs[file.path.parent] = _config(file)
        columns = ("input_ids", "attention_mask", *_COMPRESSED, *_PLAIN, *_FIRST)
        for file in files:
            if file.path.name == CONFIG_FILE:
                continue
            config = configs.get(file.path.parent)
            for place, record in read_records(file, columns):
                yield from _documents(place, record, config, job)


_Config = CompressionConfig | FirstConfig


def _config(file: ForeignFile) -> _Config:
    data = file.path.read_bytes()
    if len(data) > _MAX_CONFIG:
        raise InvalidInputError(f"{file.name} has {len(data):,} bytes: it is no configuration.")
    try:
        content = yaml.safe_load(data)
        is_first = isinstance(content, dict) and "polynomial_degree" in content
        return (FirstConfig if is_first else CompressionConfig).model_validate(content)
    except (yaml.YAMLError, ValidationError, RecursionError) as error:
        raise InvalidInputError(
            f"{file.name} is no configuration of DistillKit's compression: {error}"
        ) from error


def _documents(
    place: str, record: Record, config: _Config | None, job: ReadJob
) -> Iterator[ForeignDocument]:
    token_ids = integers(place, "input_ids", needed(place, record, "input_ids", "distillkit"))
    values, ids = _entries(place, record, config)
    count = len(token_ids)
    if len(values) not in (count - 1, count):
        raise InvalidInputError(
            f"{place} has {len(values)} rows for {count} tokens; expected {count - 1}, one for "
            "each but the last."
        )
    # What stands behind the first missing rank is made of it.
    values = np.where(np.cumsum(~np.isfinite(values), axis=1) > 0, -np.inf, values)
    has_row = np.asarray(np.isfinite(values).any(axis=1))
    is_raw = job.settings.values == "logits"
    if job.settings.values == "auto" and record.get("packed_indices") is not None:
        is_raw = bool((values > TOLERANCE).any())
    for start, stop in _parts(place, record, count):
        part = token_ids[start:stop]
        positions = np.flatnonzero(has_row[start:stop])
        taken = positions + start
        make = rows_of_logits if is_raw else rows_of_logprobs
        rows = make(
            place,
            ids[taken],
            values[taken],
            labels_of(part, positions),
            job,
            top_k=job.settings.top_k,
        )
        yield ForeignDocument(place, part, positions, rows)


def _parts(place: str, record: Record, count: int) -> list[tuple[int, int]]:
    """Documents `[start, stop)` of a record: runs of one number above 0 in its attention mask."""
    if record.get("attention_mask") is None:
        return [(0, count)]
    mask = integers(place, "attention_mask", record["attention_mask"])
    if len(mask) != count:
        raise InvalidInputError(f"{place} has {count} tokens and an attention_mask of {len(mask)}.")
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), count]
    return [
        (start, stop)
        for start, stop in itertools.pairwise(edges)
        if stop > start and mask[start] > 0
    ]


def _entries(place: str, record: Record, config: _Config | None) -> tuple[Floats, Ids]:
    """Values and ids [m, k] by whichever layout the record has."""
    if record.get("top_values") is not None:
        values, counts = matrix(place, "top_values", record["top_values"], -np.inf)
        listed = needed(place, record, "token_ids", "distillkit")
        ids, id_counts = matrix(place, "token_ids", listed, 0)
        if not np.array_equal(counts, id_counts):
            raise InvalidInputError(
                f"{place} has lists of other lengths in 'token_ids' than in 'top_values'."
            )
        return values, ids.astype(np.int64)
    is_first = record.get("packed_indices") is not None
    packed = needed(place, record, _FIRST[0] if is_first else "compressed_logprobs", "distillkit")
    if config is None:
        raise NotFoundError(
            f"{place} is compressed, and there is no {CONFIG_FILE} beside its file, without which "
            "its bytes cannot be read. Copy it there from the folder of the samples."
        )
    if isinstance(config, FirstConfig) != is_first:
        raise InvalidInputError(
            f"{place} is of DistillKit's {'first' if is_first else 'present'} layout, and "
            f"{CONFIG_FILE} beside its file of the {'present' if is_first else 'first'} one. "
            "Copy the one of these samples there."
        )
    if isinstance(config, FirstConfig):
        return _first_entries(place, record, config)
    data = _bytes(place, "compressed_logprobs", packed, config.row_bytes)
    listed = needed(place, record, "bytepacked_indices", "distillkit")
    bits = _bytes(place, "bytepacked_indices", listed, config.id_bytes)
    if len(data) != len(bits):
        raise InvalidInputError(
            f"{place} has {len(data)} rows of log-probabilities and {len(bits)} of ids."
        )
    unpacked = unpack(bits, config.id_bits, config.k).astype(np.int64)
    return decode_values(data, config), unpacked


def _first_entries(place: str, record: Record, config: FirstConfig) -> tuple[Floats, Ids]:
    packed = words(place, "packed_indices", record["packed_indices"])
    if packed.shape[1] != config.num_words:
        raise InvalidInputError(
            f"{place} has rows of {packed.shape[1]} words in 'packed_indices', and {CONFIG_FILE} "
            f"makes rows of {config.num_words}. They do not belong together."
        )
    exact = _numbers(place, record, "exact_values", len(packed), config.exact_k)
    coefficients = _numbers(place, record, "coeffs", len(packed), config.num_terms)
    return decode_first_values(exact, coefficients, config), unpack_first_ids(packed, config)


def _numbers(place: str, record: Record, column: str, rows: int, width: int) -> Floats:
    """Float64 [rows, width] of a column, which need not be there if it has no numbers."""
    if not width:
        return np.empty((rows, 0))
    found, counts = matrix(place, column, needed(place, record, column, "distillkit"), 0.0)
    if len(found) != rows:
        raise InvalidInputError(
            f"{place} has {len(found)} rows in {column!r} and {rows} in 'packed_indices'."
        )
    uneven = np.flatnonzero(counts != width)
    if len(uneven):
        raise InvalidInputError(
            f"{place}, row {uneven[0]}: {column!r} has {counts[uneven[0]]} numbers, and "
            f"{CONFIG_FILE} makes rows of {width}. They do not belong together."
        )
    return found


def _bytes(place: str, column: str, values: Any, width: int) -> npt.NDArray[np.uint8]:  # noqa: ANN401
    found, counts = matrix(place, column, values, 0)
    if np.any(counts != width) or np.any((found < 0) | (found > 255)):
        wrong = int((counts != width).argmax()) if np.any(counts != width) else 0
        raise InvalidInputError(
            f"{place}, row {wrong}: {column!r} has {counts[wrong]} bytes, and {CONFIG_FILE} makes "
            f"rows of {width}. They do not belong together."
        )
    return found.astype(np.uint8)
