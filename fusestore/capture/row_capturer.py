"""`RowCapturer`: the rows of a range, such as a shard, from any engine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from fusestore.cache.rows import Rows, blank_rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.protocol import Document, DocumentRows, Engine
from fusestore.capture.engines.row_checks import check_engine_rows, nucleus
from fusestore.errors import EngineError
from fusestore.progress import Progress
from fusestore.tokenizers.token_table import TokenTable


class RowCapturer:
    """Captures ranges of rows with one engine.

    The rows of a range depend only on its bounds: a document that crosses a bound is run for both
    ranges. So any worker can make any shard, to the same bytes if the engine computes the same.
    """

    def __init__(self, engine: Engine, tokens: TokenTable, rule: Rule) -> None:
        self._engine = engine
        self._tokens = tokens
        self._rule = rule

    def rows(self, start: int, stop: int, progress: Progress) -> tuple[Rows, list[int]]:
        """Rows `[start, stop)` of the whole corpus.

        Args:
            start: the first row.
            stop: one past the last row.
            progress: called as rows arrive; an error that it raises ends the capture.

        Returns:
            The rows, and the documents with logits that were not finite. These have `blank_rows`.

        Raises:
            EngineError: the engine gave rows that cannot be right, or not all of them.
        """
        rows = blank_rows(stop - start, self._rule.top_k)
        stored = np.zeros(stop - start, np.bool_)
        documents = self._documents(start, stop)
        rule = (
            self._rule if self._engine.capabilities.whole_rows else Rule("top-k", self._rule.top_k)
        )
        bad: set[int] = set()
        done = 0
        with closing(self._engine.run(documents, rule)) as parts:
            for part in map(self._checked, parts):
                if not part.finite:
                    bad.add(part.document.index)
                done += _store(part, start, rows, stored)
                progress(done, stop - start)
        if not stored.all():
            raise EngineError(
                f"The engine {type(self._engine).__name__} gave no row {start + stored.argmin():,} "
                f"of rows {start:,} to {stop:,}. Correct its method `run`."
            )
        offsets = self._tokens.document_offsets
        for index in bad:
            low = int(max(offsets[index], start)) - start
            high = int(min(offsets[index + 1], stop)) - start
            blank = blank_rows(high - low, self._rule.top_k)
            for field in fields(Rows):
                getattr(rows, field.name)[low:high] = getattr(blank, field.name)
        return rows, sorted(bad)

    def _documents(self, start: int, stop: int) -> list[Document]:
        """The documents with rows in `[start, stop)`, longest first.

        So there is little padding, and a batch that does not fit fails at once.
        """
        offsets = self._tokens.document_offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        documents = [
            Document(index, int(offsets[index]), self._tokens.document(index)[0])
            for index in range(first, last)
        ]
        return sorted(
            (document for document in documents if len(document.token_ids)),
            key=lambda document: (-len(document.token_ids), document.index),
        )

    def _checked(self, part: DocumentRows) -> DocumentRows:
        if self._engine.capabilities.whole_rows or not part.finite:
            return part
        check_engine_rows(part, self._rule.top_k, self._engine.capabilities.known_tail)
        labels = part.rows.label_logprob[: len(part.document.token_ids) - 1 - part.position]
        if np.isneginf(labels).any():
            # No finite logits make a token impossible.
            return replace(part, finite=False)
        if self._rule.top_p is None:
            return part
        return replace(part, rows=nucleus(part.rows, self._rule.top_p))


def _store(part: DocumentRows, start: int, rows: Rows, stored: npt.NDArray[np.bool_]) -> int:
    """Copy the rows of a document that lie in `rows`, which begin at row `start`.

    Returns:
        The number of rows copied.
    """
    first = part.document.first_row + part.position
    before = max(start - first, 0)
    count = min(len(part.rows) - before, start + len(rows) - first - before)
    if count <= 0:
        return 0
    low = first + before - start
    for field in fields(Rows):
        values = getattr(part.rows, field.name)[before : before + count]
        getattr(rows, field.name)[low : low + count] = values
    stored[low : low + count] = True
    if part.position + before + count == len(part.document.token_ids):
        # A document's last row has no next token.
        rows.label_logprob[low + count - 1] = np.nan
    return count
