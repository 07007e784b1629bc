"""DistillKit's first encoding of rows: the most likely values exact, the others by a polynomial.

    packed_indices  words of 64 bits: ⌊64 / b⌋ ids of b = ⌈log2 vocab_size⌉ bits, lowest first
    exact_values    the first `exact_k` values, float16
    coeffs          of 1, a, a², … (of 1, 1/a, 1/a², … if inverted) up to the degree, and of √a if
                    the configuration has it, at a = 1, 2, … for the values after the exact ones

Its compressor takes log-probabilities, or logits, of which it subtracts the mean over the
vocabulary. Those of likely tokens are then far above 0, which a log-probability never is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, model_validator

_MAX_TERMS = 2**16
_Floats = npt.NDArray[np.float64]


class FirstConfig(BaseModel):
    """`compression_config.yaml` of the first layout: `k` entries a row, `vocab_size` ids."""

    k: int = Field(ge=1, le=_MAX_TERMS)
    exact_k: int = Field(ge=0, le=_MAX_TERMS)
    polynomial_degree: int = Field(ge=0, le=64)
    vocab_size: int = Field(ge=2, lt=2**31)
    invert_polynomial: bool = True
    with_sqrt_term: bool = False
    term_dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"

    @model_validator(mode="after")
    def _check_sizes(self) -> FirstConfig:
        if self.exact_k > self.k:
            raise ValueError(f"exact_k {self.exact_k} is more than k {self.k}")
        return self

    @property
    def id_bits(self) -> int:
        """Bits of an id: ⌈log2 vocab_size⌉, computed in float32 as DistillKit does."""
        return int(np.ceil(np.log2(np.float32(self.vocab_size))))

    @property
    def num_words(self) -> int:
        """Words of a row's ids."""
        return -(-self.k // (64 // self.id_bits))

    @property
    def num_terms(self) -> int:
        """Coefficients of a row."""
        if self.exact_k == self.k:
            return 0
        return self.polynomial_degree + 1 + self.with_sqrt_term


def decode_first_values(exact: _Floats, coefficients: _Floats, config: FirstConfig) -> _Floats:
    """Values float64 [n, k] of exact ones [n, exact_k] and coefficients [n, terms]."""
    points = np.arange(1, config.k - config.exact_k + 1, dtype=float)
    sign = -1.0 if config.invert_polynomial else 1.0
    columns = [points ** (sign * power) for power in range(config.polynomial_degree + 1)]
    if config.with_sqrt_term:
        columns.append(np.sqrt(points))
    if not config.num_terms:
        return exact
    with np.errstate(invalid="ignore", over="ignore"):
        return np.concatenate([exact, coefficients @ np.stack(columns)], axis=1)


def unpack_first_ids(words: npt.NDArray[np.uint64], config: FirstConfig) -> npt.NDArray[np.int64]:
    """Ids int64 [n, k] of words [n, w]."""
    bits = config.id_bits
    shifts = np.arange(64 // bits, dtype=np.uint64) * np.uint64(bits)
    parts = (words[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
    return parts.reshape(len(words), -1)[:, : config.k].astype(np.int64)
