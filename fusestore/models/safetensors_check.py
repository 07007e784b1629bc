"""What a safetensors file says of itself, and whether its numbers are finite; without torch.

The format: eight bytes with the length of the header, the header (JSON: of each tensor its dtype,
shape and bytes [begin, end) behind the header), then the tensors without gaps.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.store.foreign_json import parse_foreign_json

MAX_HEADER_BYTES = 2**24
"""Room for some 100,000 tensors."""

_AT_ONCE = 2**22
"""Bytes of a tensor that are read at once."""

_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}

_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F8_E5M2": ("u1", 0x7C),
}
"""The bits that are all set in NaN and infinity, in an integer of the size."""


class StoredTensor(NamedTuple):
    """A tensor of a file: its name, dtype, and bytes `[begin, end)` of the file."""

    name: str
    dtype: str
    begin: int
    end: int


def safetensors_header(file: Location) -> list[StoredTensor]:
    """The tensors of a file, in the order of their bytes.

    Raises:
        NotFoundError: no such file.
        CorruptionError: the header is damaged, or does not fit the file.
    """
    size = file.size()
    length = int.from_bytes(file.read_range(0, min(8, size)), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise CorruptionError(f"{file} is no safetensors file: its header has {length:,} bytes.")
    data = file.read_range(8, 8 + length)
    try:
        content = parse_foreign_json(data, f"The header of {file}", MAX_HEADER_BYTES)
        tensors = [
            _tensor(name, content[name], 8 + length) for name in content if name != "__metadata__"
        ]
    except (InvalidInputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptionError(f"{file} has a damaged header: {error}") from error
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = 8 + length
    for tensor in tensors:
        if tensor.begin != end:
            raise CorruptionError(f"{file}: tensor {tensor.name!r} does not begin at byte {end:,}.")
        end = tensor.end
    if end != size:
        raise CorruptionError(f"{file} has {size:,} bytes; its tensors end at {end:,}.")
    return tensors


def _tensor(name: str, entry: Any, first: int) -> StoredTensor:  # noqa: ANN401 - JSON
    begin, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"tensor {name!r} has sizes that are none")
    if dtype not in _BYTES or end - begin != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"tensor {name!r} of {dtype} {shape} has {end - begin:,} bytes")
    return StoredTensor(name, dtype, first + begin, first + end)


def not_finite(file: Location) -> str | None:
    """The name of a tensor with NaN or infinity; None if there is none. Reads the whole file.

    Raises:
        NotFoundError, CorruptionError: as for `safetensors_header`.
    """
    for tensor in safetensors_header(file):
        if tensor.dtype not in _EXPONENTS:
            continue
        dtype, mask = _EXPONENTS[tensor.dtype]
        for start in range(tensor.begin, tensor.end, _AT_ONCE):
            data = file.read_range(start, min(start + _AT_ONCE, tensor.end))
            bits: npt.NDArray[Any] = np.frombuffer(data, dtype)
            if np.any((bits & bits.dtype.type(mask)) == mask):
                return tensor.name
    return None
