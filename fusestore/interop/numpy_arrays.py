"""Plain arrays: `.npz`, a folder of `.npy`, or `.safetensors`, with the names below.

    token_ids         integer [T]       tokens of all documents, one after the other
    document_offsets  integer [D + 1]   document i is tokens [value[i], value[i + 1]); optional: one
    ids               integer [R, k]    token ids of the entries
    logprobs, logits  float [R, k]      one of the two; −inf where there is no entry
    tail              float [R]         log of the mass outside the entries; optional
    label_logprob     float [R]         of the next token; optional; NaN where it is not known
    has_row           bool [T]          which tokens have a row; optional: all, so R = T

Row r is the distribution for the token after its token, as everywhere in fusestore.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import (
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    ReadJob,
    labels_of,
    rows_of_logits,
    rows_of_logprobs,
)

_NAMES = ("token_ids", "document_offsets", "ids", "logprobs", "logits", "tail", "label_logprob")
NAMES = (*_NAMES, "has_row")

_MAX_RATIO = 1100
"""Deflate makes data at most 1,032 times smaller: a member that claims more is not one."""

Array = npt.NDArray[Any]


class NumpyArrays(ForeignFormat):
    """See the module."""

    suffixes = (".npz", ".npy", ".safetensors")

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """The documents of each file, and of all `.npy` files of a folder together."""
        folders: dict[Path, list[ForeignFile]] = {}
        for file in files:
            if file.path.suffix == ".npy":
                folders.setdefault(file.path.parent, []).append(file)
            else:
                arrays = _npz(file) if file.path.suffix == ".npz" else _safetensors(file)
                yield from _documents(file.name, arrays, job)
        for parts in folders.values():
            arrays = {part.path.stem: read_npy(part) for part in parts if part.path.stem in NAMES}
            if not arrays:
                raise InvalidInputError(
                    f"{parts[0].name} is no array of the layout numpy, which has one file for each "
                    f"of {', '.join(NAMES)}. Name the folder of the files."
                )
            yield from _documents(f"{parts[0].path.parent.name}/*.npy", arrays, job)


def _documents(name: str, arrays: Mapping[str, Array], job: ReadJob) -> Iterator[ForeignDocument]:
    values_name = _values_name(name, arrays, job)
    tokens, ids, values = (arrays.get(each) for each in ("token_ids", "ids", values_name))
    if tokens is None or ids is None or values is None:
        lacks = "token_ids" if tokens is None else "ids"
        raise InvalidInputError(
            f"{name} lacks the array {lacks!r}; it has {', '.join(arrays) or 'none'}. Arrays of "
            "the layout numpy are: " + ", ".join(NAMES) + "."
        )
    count = len(tokens)
    offsets = np.asarray(arrays.get("document_offsets", [0, count]), np.int64)
    has_row = np.asarray(arrays.get("has_row", np.ones(count, np.bool_)))
    rows = int(has_row.sum())
    shapes = {
        "token_ids": (tokens, (count,), "iu"),
        "document_offsets": (offsets, (len(offsets),), "iu"),
        "has_row": (has_row, (count,), "b"),
        "ids": (ids, (rows, ids.shape[-1] if ids.ndim else 0), "iu"),
        values_name: (values, ids.shape, "f"),
    }
    for optional in ("tail", "label_logprob"):
        if optional in arrays:
            shapes[optional] = (arrays[optional], (rows,), "f")
    for each, (array, shape, kinds) in shapes.items():
        if array.shape != shape or array.dtype.kind not in kinds:
            raise InvalidInputError(
                f"{name} has {each!r} of {array.dtype} {list(array.shape)}; expected "
                f"{'a float' if kinds == 'f' else 'a bool' if kinds == 'b' else 'an integer'} "
                f"{list(shape)}, for {count:,} tokens with {rows:,} rows."
            )
    if offsets[0] != 0 or offsets[-1] != count or np.any(np.diff(offsets) < 0):
        raise InvalidInputError(
            f"{name} has document_offsets from {offsets[0]} to {offsets[-1]}, which must rise from "
            f"0 to the {count} tokens."
        )
    first_row = np.concatenate([np.zeros(1, np.int64), np.cumsum(has_row)])
    for index, (start, stop) in enumerate(itertools.pairwise(offsets.tolist())):
        place = f"Document {index} of {name}"
        token_ids = tokens[start:stop].astype(np.int64)
        part = slice(int(first_row[start]), int(first_row[stop]))
        positions = np.flatnonzero(has_row[start:stop])
        entry_ids, entries = ids[part].astype(np.int64), values[part].astype(np.float64)
        labels = labels_of(token_ids, positions)
        given = {
            each: arrays[each][part].astype(np.float64)
            for each in ("label_logprob", "tail")
            if each in arrays
        }
        top_k = job.settings.top_k
        if values_name == "logits":
            given.pop("tail", None)
            made = rows_of_logits(place, entry_ids, entries, labels, job, top_k=top_k, **given)
        else:
            tail = given.get("tail")
            # A tail that is not known, or of more entries than are kept, says nothing here.
            unknown = tail is not None and bool(np.isnan(tail).any())
            if unknown or (top_k is not None and top_k < ids.shape[1]):
                given.pop("tail", None)
            if unknown:
                made = rows_of_logits(place, entry_ids, entries, labels, job, top_k=top_k, **given)
            else:
                made = rows_of_logprobs(
                    place, entry_ids, entries, labels, job, top_k=top_k, **given
                )
        yield ForeignDocument(place, token_ids, positions, made)


def _values_name(name: str, arrays: Mapping[str, Array], job: ReadJob) -> str:
    wanted = job.settings.values
    found = [each for each in ("logprobs", "logits") if each in arrays]
    if wanted == "auto" and len(found) == 1:
        return found[0]
    if wanted == "auto" or wanted not in found:
        raise InvalidInputError(
            f"{name} has {' and '.join(found) or 'neither logprobs nor logits'}; it must have one "
            "of them, or --values must say which to read."
        )
    return wanted


def _npz(file: ForeignFile) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(file.path) as archive:
            for member in archive.infolist():
                if member.file_size > _MAX_RATIO * member.compress_size + 2**16:
                    raise InvalidInputError(
                        f"{file.name} holds {member.filename!r}, which claims {member.file_size:,} "
                        f"bytes in {member.compress_size:,}: it is damaged. It was not read."
                    )
                with archive.open(member) as data:
                    _check_header(file, data, member.file_size)
        with np.load(file.path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in NAMES if name in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(file, error) from error


def read_npy(file: ForeignFile) -> Array:
    """The array of a `.npy` file, mapped into memory.

    Raises:
        InvalidInputError: it is damaged, or holds Python objects.
    """
    try:
        with file.path.open("rb") as data:
            _check_header(file, data, file.path.stat().st_size)
        loaded: Array = np.load(file.path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(file, error) from error
    return loaded


def _check_header(file: ForeignFile, data: Any, size: int) -> None:  # noqa: ANN401 - a stream
    """Check that the array that a header announces is there, before memory is taken for it."""
    version = np.lib.format.read_magic(data)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    if version[0] not in read:
        raise ValueError(f"version {version[0]} of the layout")
    shape, _, dtype = read[version[0]](data)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    expected = data.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if size != expected:
        raise ValueError(f"{size:,} bytes, where its header needs {expected:,}")


def _safetensors(file: ForeignFile) -> dict[str, Array]:
    import torch
    from safetensors import SafetensorError, safe_open

    arrays = {}
    try:
        with safe_open(file.path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name in NAMES:
                    tensor = tensors.get_tensor(name)
                    # bfloat16 is no type of NumPy.
                    is_short = tensor.dtype == torch.bfloat16
                    arrays[name] = (tensor.float() if is_short else tensor).numpy()
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error
    return arrays


def _unreadable(file: ForeignFile, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"{file.name} cannot be read as {file.path.suffix[1:]}: {error}. It may be truncated or "
        "of another format: copy it again."
    )
