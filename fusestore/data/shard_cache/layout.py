"""A fetched shard as one file with the arrays of samples, for memory mapping.

The file is concatenated chunk files of the local form: raw little-endian values and four bytes of
CRC-32C each. It has no header; a dataset's layout follows from its manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.fuse.layout import fused_arrays, shared_rows
from fusestore.fuse.manifest import FusedManifest
from fusestore.store.arrays import ArraySpec, ends_in_crc32c

_CHECKSUM_BYTES = 4

_IN_ORDER = ("ids", "logprobs", "input_ids", "next_ids", "tail", "kind")
"""Large arrays first, to be decoded while others arrive; bytes last, so that all are aligned."""


@dataclass(frozen=True)
class ShardLayout:
    """The byte range of each array in a shard's file.

    Attributes:
        num_tokens: T.
        top_k: entries per row.
        rows_per_shard: positions of a shard, as the dataset is stored; every file has this size (T
            positions, if fewer).
    """

    num_tokens: int
    top_k: int
    rows_per_shard: int

    @classmethod
    def of(cls, manifest: FusedManifest) -> ShardLayout:
        """The layout of a dataset's shards."""
        recipe, rows = manifest.plan.recipe, manifest.plan.recipe.rows_per_shard
        if manifest.form == "shared":
            rows = shared_rows(manifest.num_tokens, rows)
        return cls(manifest.num_tokens, recipe.top_k, rows)

    @cached_property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The arrays of the local form, in the order of the file."""
        by_name = {
            array.name: array
            for array in fused_arrays(self.num_tokens, self.top_k, self.rows_per_shard)
        }
        return tuple(by_name[name] for name in _IN_ORDER)

    @cached_property
    def _bounds(self) -> dict[str, tuple[int, int]]:
        bounds, position = {}, 0
        for array in self.arrays:
            values = prod(array.chunk_shape) * np.dtype(array.dtype).itemsize
            bounds[array.name] = position, position + values + _CHECKSUM_BYTES
            position += values + _CHECKSUM_BYTES
        return bounds

    @cached_property
    def num_bytes(self) -> int:
        """Size of every shard's file in bytes."""
        return max(stop for _, stop in self._bounds.values())

    def sections(self, content: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.uint8]]:
        """Views of a file's bytes, uint8 [num_bytes], by array: values and checksum."""
        return {name: content[start:stop] for name, (start, stop) in self._bounds.items()}

    def values(self, content: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """Views of a file's bytes by array: its values, [rows] or [rows, k]."""
        sections = self.sections(content)
        return {
            array.name: sections[array.name][:-_CHECKSUM_BYTES]
            .view(np.dtype(array.dtype).newbyteorder("<"))
            .reshape(array.chunk_shape)
            for array in self.arrays
        }

    def seal(self, content: npt.NDArray[np.uint8], name: str, checksum: int) -> None:
        """Write the CRC-32C of an array's values after them."""
        section = self.sections(content)[name]
        section[-_CHECKSUM_BYTES:].view("<u4")[0] = checksum

    def is_sound(self, content: npt.NDArray[np.uint8]) -> bool:
        """Whether the file is whole and every array matches its checksum."""
        return len(content) == self.num_bytes and all(
            ends_in_crc32c(section) for section in self.sections(content).values()
        )
