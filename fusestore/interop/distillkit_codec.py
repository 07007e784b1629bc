"""DistillKit's encoding of falling log-probabilities as bytes, and of ids as bits.

A row is, one after the other: `exact_k` values; polynomial coefficients; and for each residual bin
a scale and its elements, as unsigned integers of `element_bits`, most significant bit first, filled
up to bytes. Values are little-endian. What bins do not cover has residual 0. With `delta_encoding`
values are differences along the row.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

TermDtype = Literal["float16", "bfloat16", "float32", "float64"]

_MAX_TERMS = 2**16
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]


class QuantizationBin(BaseModel):
    """Residuals that share a scale."""

    scale_dtype: TermDtype
    element_bits: int = Field(ge=1, le=64)
    num_elements: int = Field(ge=1, le=_MAX_TERMS)


class CompressionConfig(BaseModel):
    """`compression_config.yaml`: how rows are encoded; `d` ids, `k` entries a row."""

    d: int = Field(ge=1, lt=2**31)
    k: int = Field(ge=1, le=_MAX_TERMS)
    exact_k: int = Field(ge=0, le=_MAX_TERMS)
    exact_dtype: TermDtype = "float32"
    polynomial_terms: list[Annotated[int, Field(ge=0, le=64)] | Literal["sqrt", "exp"]] | None = (
        Field(default=None, max_length=64)
    )
    term_dtype: TermDtype = "float32"
    residual_bins: list[QuantizationBin] = Field(max_length=256)
    delta_encoding: bool = True
    error_diffusion: bool = False
    normalize_t: bool = False

    @model_validator(mode="after")
    def _check_sizes(self) -> CompressionConfig:
        covered = sum(each.num_elements for each in self.residual_bins)
        if self.exact_k + covered > self.k:
            raise ValueError(
                f"exact_k {self.exact_k} and {covered} elements in bins are more than k {self.k}"
            )
        return self

    @property
    def id_bits(self) -> int:
        """Bits of an id: ⌈log2 d⌉, computed in float32 as DistillKit does."""
        return int(np.ceil(np.log2(np.float32(self.d))))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's values."""
        size = self.exact_k * _width(self.exact_dtype)
        size += len(self.polynomial_terms or ()) * _width(self.term_dtype)
        for each in self.residual_bins:
            size += _width(each.scale_dtype) + -(-each.element_bits * each.num_elements // 8)
        return size

    @property
    def id_bytes(self) -> int:
        """Bytes of a row's ids."""
        return -(-self.id_bits * self.k // 8)


def decode_values(data: _Bytes, config: CompressionConfig) -> _Floats:
    """Log-probabilities float64 [n, k] of rows, uint8 [n, row_bytes].

    Where a rank is missing, DistillKit encodes −inf, which differences make NaN: both stay.
    """
    taken = 0

    def take(count: int) -> _Bytes:
        nonlocal taken
        taken += count
        return data[:, taken - count : taken]

    exact = _floats(take(config.exact_k * _width(config.exact_dtype)), config.exact_dtype)
    rest = config.k - config.exact_k
    approximate = np.zeros((len(data), rest))
    terms = config.polynomial_terms
    if terms:
        coefficients = _floats(take(len(terms) * _width(config.term_dtype)), config.term_dtype)
        points = np.linspace(0, 1, rest) if config.normalize_t else np.arange(rest, dtype=float)
        columns = [
            points**term if isinstance(term, int) else getattr(np, term)(points) for term in terms
        ]
        with np.errstate(invalid="ignore", over="ignore"):
            approximate += coefficients @ np.stack(columns)
    start = 0
    for each in config.residual_bins:
        scale = _floats(take(_width(each.scale_dtype)), each.scale_dtype)
        packed = take(-(-each.element_bits * each.num_elements // 8))
        elements = unpack(packed, each.element_bits, each.num_elements)
        if each.element_bits == 1:
            centered = elements.astype(np.float64) * 2 - 1
        else:
            centered = elements.astype(np.float64) - 2.0 ** (each.element_bits - 1)
        stop = start + each.num_elements
        with np.errstate(invalid="ignore", over="ignore"):
            approximate[:, start:stop] += centered * scale
        start = stop
    values = np.concatenate([exact, approximate], axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.cumsum(values, axis=1) if config.delta_encoding else values


def unpack(data: _Bytes, bits: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` integers of `bits` bits, most significant first, of each row of bytes."""
    flat = np.unpackbits(data, axis=1, count=count * bits).reshape(len(data), count, bits)
    result = np.zeros((len(data), count), np.uint64)
    for bit in range(bits):
        result = (result << np.uint64(1)) | flat[:, :, bit]
    return result


def pack(values: npt.NDArray[np.int64], bits: int) -> _Bytes:
    """Inverse of `unpack`."""
    places = np.arange(bits - 1, -1, -1)
    flat = (values[:, :, None] >> places) & 1
    return np.packbits(flat.astype(np.uint8).reshape(len(values), -1), axis=1)


def _width(dtype: TermDtype) -> int:
    return {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[dtype]


def _floats(data: _Bytes, dtype: TermDtype) -> _Floats:
    whole = np.ascontiguousarray(data)
    if dtype == "bfloat16":
        shifted = whole.view("<u2").astype(np.uint32) << np.uint32(16)
        return shifted.view(np.float32).astype(np.float64)
    found: npt.NDArray[Any] = whole.view(np.dtype(dtype).newbyteorder("<"))
    return found.astype(np.float64)
