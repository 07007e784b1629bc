"""Tars of teacher rows that a fork of Megatron caches: `cp{C}_dp{D}__{iteration}.tar`.

A member `{iteration}.pt.zst` holds the microbatches of an iteration, each a dictionary of tensors:

    values       float16 [seq, batch, K], log-probabilities; −1e3 where there is no entry
    indices_low  uint16 [seq, batch, K], the low 16 bits of the ids
    bit_17       bool [seq, batch, K], the bit above them

The tars hold no token ids. They stand beside each tar, in a file of its name: `.npy`, integers
[sequences, seq], or a table with a list `input_ids` a sequence; in the order of the tar, which is
iterations by number, microbatches, sequences. Row i is the distribution for token i + 1.

Tensors are read by `torch.load(weights_only=True)`, which runs no code of the file.
"""

from __future__ import annotations

import io
import pickle
import re
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.interop.foreign import (
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
from fusestore.interop.numpy_arrays import read_npy
from fusestore.interop.records import integers, needed, read_records

if TYPE_CHECKING:
    import torch

_TAR = re.compile(r"cp(\d+)_dp(\d+)__(\d+)\.tar")
_MEMBER = re.compile(r"(?:.*/)?(\d+)\.pt\.zst")
_ID_SUFFIXES = (".npy", ".parquet", ".arrow")

_MOST_BYTES = 2**31
"""Of an iteration, compressed or not; more is refused."""

_NO_ENTRY = -999.0
"""Values below it stand for no entry."""

_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, LookupError, EOFError),
    *(TypeError, AttributeError),
)
"""What `torch.load` raises for files that it does not read."""

_TENSORS = ("values", "indices_low", "bit_17")


class Megatron(ForeignFormat):
    """See the module."""

    suffixes = (".tar", *_ID_SUFFIXES)

    def files(self, path: Path) -> list[Path]:
        """Tars by rank and iteration, each behind the token ids that stand beside it."""
        if path.is_file():
            tars = [path]
        else:
            tars = [each for each in path.rglob("*.tar") if each.is_file()]
        found: list[Path] = []
        for tar in sorted(tars, key=_order):
            beside = (tar.with_suffix(suffix) for suffix in _ID_SUFFIXES)
            found += [*(each for each in beside if each.is_file()), tar]
        return found

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a sequence."""
        ids: dict[Path, ForeignFile] = {}
        for file in files:
            if file.path.suffix != ".tar":
                ids[file.path.with_suffix("")] = file
                continue
            _check_name(file)
            beside = ids.get(file.path.with_suffix(""))
            if beside is None:
                raise NotFoundError(
                    f"{file.name} holds no token ids, and there is no {file.path.stem}.npy, "
                    ".parquet or .arrow beside it. Save the token ids of its sequences there: "
                    "integers [sequences, seq], or a table with a column input_ids, in the order "
                    "of the tar."
                )
            yield from _documents(file, beside, job)


def _order(path: Path) -> tuple[int, int, int, str]:
    match = _TAR.fullmatch(path.name)
    return (*map(int, match.groups()), path.name) if match else (0, 0, 0, path.name)  # type: ignore[return-value]


def _check_name(file: ForeignFile) -> None:
    match = _TAR.fullmatch(file.path.name)
    if match is None:
        raise InvalidInputError(
            f"{file.name} is not named as the tars of Megatron's cache, cp0_dp0__1000.tar: rank "
            "of context parallelism, of data parallelism, and iteration."
        )
    if match[1] != "0":
        raise InvalidInputError(
            f"{file.name} is of rank {match[1]} of context parallelism, which divides each "
            "sequence over several tars in pieces. They are not put together. Cache the rows "
            "without context parallelism."
        )


def _documents(file: ForeignFile, beside: ForeignFile, job: ReadJob) -> Iterator[ForeignDocument]:
    sequences = _token_ids(beside)
    count = 0
    for place, values, ids in _sequences(file):
        token_ids = next(sequences, None)
        if token_ids is None:
            break
        count += 1
        if len(token_ids) != len(values):
            raise InvalidInputError(
                f"{place} has rows for {len(values)} tokens, and sequence {count - 1} of "
                f"{beside.name} has {len(token_ids)} tokens."
            )
        positions = np.flatnonzero((values > -np.inf).any(axis=1))
        make = rows_of_logits if job.settings.values == "logits" else rows_of_logprobs
        rows = make(
            place,
            ids[positions],
            values[positions],
            labels_of(token_ids, positions),
            job,
            top_k=job.settings.top_k,
        )
        # Sequences are cut anywhere.
        yield ForeignDocument(place, token_ids, positions, rows, whole_text=False)
    else:
        if next(sequences, None) is None:
            return
        raise InvalidInputError(
            f"{beside.name} has more sequences than {file.name}, which has {count}."
        )
    raise InvalidInputError(
        f"{file.name} has more sequences than {beside.name}, which has {count}."
    )


def _token_ids(file: ForeignFile) -> Iterator[Ids]:
    if file.path.suffix != ".npy":
        for place, record in read_records(file, ("input_ids",)):
            yield integers(place, "input_ids", needed(place, record, "input_ids", "megatron"))
        return
    array = read_npy(file)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{file.name} has {array.dtype} {list(array.shape)}; expected token ids, integers "
            "[sequences, seq]."
        )
    for row in array:
        yield np.asarray(row, np.int64)


def _sequences(file: ForeignFile) -> Iterator[tuple[str, Floats, Ids]]:
    """Place, values and ids [seq, K] of each sequence, in order; −inf where there is no entry."""
    try:
        with tarfile.open(file.path, "r:") as tar:
            found = ((_MEMBER.fullmatch(each.name), each) for each in tar if each.isfile())
            members = [(int(match[1]), each) for match, each in found if match is not None]
            if not members:
                raise InvalidInputError(f"{file.name} has no member such as 1000.pt.zst.")
            for number, member in sorted(members, key=lambda pair: pair[0]):
                place = f"Iteration {number} of {file.name}"
                data = tar.extractfile(member)
                if data is None or member.size > _MOST_BYTES:
                    raise InvalidInputError(
                        f"{place} has {member.size:,} bytes, which is too many."
                    )
                for batch, tensors in enumerate(_microbatches(place, data)):
                    yield from _of_microbatch(f"{place}, microbatch {batch}", tensors)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InvalidInputError(
            f"{file.name} cannot be read as a tar: {error}. Copy it again."
        ) from error


def _microbatches(place: str, data: IO[bytes]) -> list[Mapping[str, torch.Tensor]]:
    import torch

    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd

    try:
        with zstd.ZstdFile(data) as stream:
            content = stream.read(_MOST_BYTES + 1)
    except (zstd.ZstdError, EOFError, OSError) as error:
        raise InvalidInputError(
            f"{place} cannot be read as zstd: {error}. Copy the file again."
        ) from error
    if len(content) > _MOST_BYTES:
        raise InvalidInputError(f"{place} has more than {_MOST_BYTES:,} bytes. It was not read.")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInputError(
            f"{place} is no file of tensors that can be read without running its code: {reason}"
        ) from error
    listed = loaded if isinstance(loaded, list | tuple) else [loaded]
    for each in listed:
        if not isinstance(each, Mapping) or not all(
            isinstance(each.get(name), torch.Tensor) for name in _TENSORS
        ):
            raise InvalidInputError(
                f"{place} does not hold the tensors {', '.join(_TENSORS)} of each microbatch."
            )
        if any(each[name].numel() * each[name].element_size() > len(content) for name in _TENSORS):
            raise InvalidInputError(f"{place} has tensors larger than its file. It is damaged.")
    return list(listed)


def _of_microbatch(
    place: str, tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Floats, Ids]]:
    import torch

    values, low, high = (tensors[name] for name in _TENSORS)
    if values.ndim != 3 or not (values.shape == low.shape == high.shape):
        shapes = ", ".join(f"{name} {list(tensors[name].shape)}" for name in _TENSORS)
        raise InvalidInputError(f"{place} has {shapes}; expected [seq, batch, K] of all three.")
    if not values.is_floating_point() or low.dtype != torch.uint16 or high.dtype != torch.bool:
        types = ", ".join(f"{name} of {tensors[name].dtype}" for name in _TENSORS)
        raise InvalidInputError(f"{place} has {types}; expected float16, uint16 and bool.")
    logprobs: npt.NDArray[Any] = values.detach().double().numpy()
    logprobs = np.where(logprobs < _NO_ENTRY, -np.inf, logprobs)
    ids = low.numpy().astype(np.int64) | high.numpy().astype(np.int64) << 16
    for sequence in range(values.shape[1]):
        yield f"{place}, sequence {sequence}", logprobs[:, sequence], ids[:, sequence]
