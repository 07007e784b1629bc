"""`RowSpool`: rows of documents in a temporary file, while nothing is known of their corpus."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Self

import numpy as np

from fusestore.cache.rows import Rows


class RowSpool:
    """Rows of documents, written once and read in any order; removed when it is closed."""

    def __init__(self) -> None:
        # Open for as long as the spool.
        self._file = tempfile.TemporaryFile(prefix="fusestore-import-")  # noqa: SIM115
        self._places: list[tuple[int, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def width(self) -> int:
        """k, the most entries of a row."""
        return max((k for _, _, k in self._places), default=0)

    def add(self, rows: Rows) -> int:
        """Keep the rows of a document; returns its number."""
        start = self._file.seek(0, 2)
        for values in (rows.ids, rows.logprobs, rows.tail, rows.label_logprob):
            self._file.write(np.ascontiguousarray(values).data)
        self._places.append((start, *rows.ids.shape))
        return len(self._places) - 1

    def read(self, number: int) -> Rows:
        """The rows of a document, with `width` entries each."""
        start, n, k = self._places[number]
        self._file.seek(start)
        data = self._file.read(n * (8 * k + 8))
        cells = 4 * n * k
        ids = np.frombuffer(data, np.int32, n * k).reshape(n, k)
        logprobs = np.frombuffer(data, np.float32, n * k, cells).reshape(n, k)
        missing = ((0, 0), (0, self.width - k))
        return Rows(
            np.pad(ids, missing),
            np.pad(logprobs, missing, constant_values=-np.inf),
            np.frombuffer(data, np.float32, n, 2 * cells),
            np.frombuffer(data, np.float32, n, 2 * cells + 4 * n),
        )
