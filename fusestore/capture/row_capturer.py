"""`RowCapturer`: the rows of a range, such as a shard, from any engine."""

from __future__ import annotations

from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from fusestore.cache.kept_rows import KeptRows
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

    def __init__(
        self, engine: Engine, tokens: TokenTable, rule: Rule, kept: KeptRows | None = None
    ) -> None:
        """Use an engine that is started.

        Args:
            engine: computes the rows.
            tokens: of the corpus.
            rule: selects the entries.
            kept: which tokens have a row; None for all.
        """
        self._engine = engine
        self._tokens = tokens
        self._rule = rule
        self._kept = KeptRows.all(tokens.num_tokens) if kept is None else kept

    def rows(self, start: int, stop: int, progress: Progress) -> tuple[Rows, list[int]]:
        """Kept rows `[start, stop)` of the whole corpus.

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
                done += self._store(part, start, rows, stored)
                progress(done, stop - start)
        if not stored.all():
            token = self._kept.tokens(start, stop)[stored.argmin()]
            raise EngineError(
                f"The engine {type(self._engine).__name__} gave no row {token:,} "
                f"of rows {start:,} to {stop:,}. Correct its method `run`."
            )
        offsets = self._tokens.document_offsets
        for index in bad:
            low, high = self._kept.rows_of(int(offsets[index]), int(offsets[index + 1]))
            low, high = max(low, start) - start, min(high, stop) - start
            blank = blank_rows(high - low, self._rule.top_k)
            for field in fields(Rows):
                getattr(rows, field.name)[low:high] = getattr(blank, field.name)
        return rows, sorted(bad)

    def _documents(self, start: int, stop: int) -> list[Document]:
        """The documents with rows in `[start, stop)`, longest first.

        So there is little padding, and a batch that does not fit fails at once.
        """
        offsets = self._tokens.document_offsets
        tokens = self._kept.tokens(start, stop)
        if not len(tokens):
            return []
        first = int(np.searchsorted(offsets, tokens[0], side="right")) - 1
        last = int(np.searchsorted(offsets, tokens[-1], side="right"))
        documents = map(self._document, range(first, last))
        return sorted(
            (document for document in documents if document is not None),
            key=lambda document: (-len(document.token_ids), document.index),
        )

    def _document(self, index: int) -> Document | None:
        """A document up to what its last kept row predicts; None if none is kept."""
        first, end = self._tokens.document_offsets[index : index + 2].tolist()
        low, high = self._kept.rows_of(first, end)
        token_ids = self._tokens.token_ids[first:end]
        if high - low in (0, end - first):
            return Document(index, first, token_ids) if high > low else None
        wanted = self._kept.mask(first, end)
        length = int(wanted.nonzero()[0][-1]) + 2
        return Document(index, first, token_ids[:length], wanted[:length])

    def _checked(self, part: DocumentRows) -> DocumentRows:
        if self._engine.capabilities.whole_rows or not part.finite:
            return part
        check_engine_rows(part, self._rule.top_k, self._engine.capabilities.known_tail)
        document = part.document
        impossible = np.isneginf(part.rows.label_logprob)
        impossible[len(document.token_ids) - 1 - part.position :] = False
        if document.wanted is not None:
            impossible &= document.wanted[part.position : part.position + len(part.rows)]
        if impossible.any():
            # No finite logits make a token impossible.
            return replace(part, finite=False)
        if self._rule.top_p is None:
            return part
        return replace(part, rows=nucleus(part.rows, self._rule.top_p))

    def _store(
        self, part: DocumentRows, start: int, rows: Rows, stored: npt.NDArray[np.bool_]
    ) -> int:
        """Copy the kept rows of a document that lie in `rows`, which begin at row `start`.

        Returns:
            The number of rows copied.
        """
        first = part.document.first_row + part.position
        low, high = self._kept.rows_of(first, first + len(part.rows))
        low, high = max(low, start), min(high, start + len(rows))
        if low >= high:
            return 0
        tokens = self._kept.tokens(low, high)
        for field in fields(Rows):
            getattr(rows, field.name)[low - start : high - start] = getattr(part.rows, field.name)[
                tokens - first
            ]
        stored[low - start : high - start] = True
        if tokens[-1] + 1 == self._tokens.document_offsets[part.document.index + 1]:
            # A document's last row has no next token.
            rows.label_logprob[high - 1 - start] = np.nan
        return high - low
