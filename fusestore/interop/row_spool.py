"""`RowSpool`: rows of documents in a temporary file, while nothing is known of their corpus."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Self

import numpy as np

from fusestore.cache.rows import Rows
from fusestore.storage.disk_errors import disk_errors
from fusestore.storage.replace import scratch_folder


class RowSpool:
    """Rows of documents, written once and read in any order; removed when it is closed.

    Raises:
        AccessDeniedError, StorageError: the disk of temporary files is full, read-only or broken.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as opened:
            self._folder = opened.enter_context(scratch_folder("import"))
            with disk_errors(self._folder):
                self._file = (self._folder / "rows").open("w+b")
            self._opened = opened.pop_all()
        self._places: list[tuple[int, int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # What is not written yet is wanted no more, and its error would hide the one that counts.
        with contextlib.suppress(OSError):
            self._file.close()
        self._opened.close()

    @property
    def width(self) -> int:
        """k, the most entries of a row."""
        return max((k for _, _, k in self._places), default=0)

    def add(self, rows: Rows) -> int:
        """Keep the rows of a document; returns its number."""
        with disk_errors(self._folder, "The rows of a document"):
            start = self._file.seek(0, 2)
            for values in (rows.ids, rows.logprobs, rows.tail, rows.label_logprob):
                self._file.write(np.ascontiguousarray(values).data)
            self._file.flush()
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
