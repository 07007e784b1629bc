"""A cache's tokens, read a few documents at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fusestore.cache.layout import cache_arrays
from fusestore.cache.reader import Cache
from fusestore.corpus.tokens import TokenTable
from fusestore.storage.array_reader import ArrayReader


class CacheTokens:
    """A `TokenStream` of the tokens that a cache's model read."""

    def __init__(self, cache: Cache) -> None:
        arrays = cache_arrays(cache.fingerprint)
        self._offsets = cache.document_offsets
        self._token_ids = ArrayReader(cache.location, arrays.token_ids)
        self._end_offsets = ArrayReader(cache.location, arrays.end_offsets)

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is tokens `[value[i], value[i + 1])`."""
        return self._offsets

    def documents(self, start: int, stop: int) -> TokenTable:
        """The tokens of documents `[start, stop)`."""
        offsets = self._offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return TokenTable(
            self._token_ids.read(first, last),
            self._end_offsets.read(first, last),
            offsets - offsets[0],
        )
