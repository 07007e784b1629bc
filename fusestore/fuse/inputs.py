"""The inputs of a fusion: sources with their maps and alignments, loaded for a few documents.

Caches and alignments are used through the two protocols below, which plain arrays meet too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusestore.align.kinds import INSIDE, SPAN
from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.errors import CorruptionError, IncompatibleError
from fusestore.fuse.labels import Labels, own_labels, read_labels, without_unknown
from fusestore.tokenizers.supervision import Supervision
from fusestore.tokenizers.token_table import TokenTable, count_known
from fusestore.tokenizers.vocabulary import Spelling


class DistributionCache(Protocol):
    """A distribution cache of the whole corpus, such as `fusestore.cache.reader.Cache`."""

    @property
    def document_offsets(self) -> npt.NDArray[np.int64]:
        """int64 [D + 1]: document i is rows `[value[i], value[i + 1])`."""

    def read_tokens(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Ids and end offsets of the tokens of rows `[start, stop)`."""

    @property
    def skipped(self) -> Collection[int]:
        """Documents without usable rows."""

    def __getitem__(self, rows: slice) -> Rows:
        """Rows `[start, stop)` of the concatenated rows of all documents."""


class TokenAlignment(Protocol):
    """An alignment of the whole corpus, such as `fusestore.align.stored.Alignment`."""

    def for_documents(
        self, start: int, stop: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """`(source_pos, kind)` of all target tokens of documents `[start, stop)`, concatenated.

        `source_pos` counts from the first token of the same document; −1 for none.
        """


@dataclass(frozen=True)
class SourceInput:
    """One source of a fusion.

    Attributes:
        name: the cache's name, as the recipe has it.
        cache: its rows.
        cache_digest: of the cache's manifest.
        corpus_digest: of the corpus the cache was made from.
        target_id: int32 [V_src] the vocabulary map, −1 for none; None when source and target have
            one tokenizer.
        alignment: None when the source's tokens are the target's own.
        vocabulary_map_digest: of the map; None without one.
        alignment_digest: of the alignment; None without one.
        vocab_size: width of the source model's output. Ids between the map's size and this are
            padding without tokens, and their mass joins the tail. 0: as wide as the map.
        rule: the rule by which the cache keeps entries; None: the rows do not count as samples.
        spelling: the bytes of the source's ids. None with the target's tokenizer, or where rows of
            kind `inside` are not used and no label ends inside a source token.
        first_tokens: int32 [B], of every byte of the spelling the target token that begins there;
            see `align.vocabulary.first_tokens`.
        is_partial: whether tokens may lack a row (tail NaN), or a row its label's log-probability
            (NaN): they take no part. In other caches these are damage.
    """

    name: str
    cache: DistributionCache
    cache_digest: str
    corpus_digest: str
    target_id: npt.NDArray[np.int32] | None = None
    alignment: TokenAlignment | None = None
    vocabulary_map_digest: str | None = None
    alignment_digest: str | None = None
    vocab_size: int = 0
    rule: Rule | None = None
    spelling: Spelling | None = None
    first_tokens: npt.NDArray[np.int32] | None = None
    is_partial: bool = False

    @property
    def draws(self) -> int:
        """Draws per row of a sampled cache; 0 for other caches."""
        if self.rule is None or self.rule.name != "sampled":
            return 0
        return self.rule.top_k

    def projection_map(self, target_vocab_size: int) -> npt.NDArray[np.int32]:
        """int32 [V_src]: the target token of every id in the source's output.

        Raises:
            IncompatibleError: the map names tokens that the target does not have.
        """
        if self.target_id is None:
            mapped = np.arange(target_vocab_size, dtype=np.int32)
        else:
            mapped = self.target_id.astype(np.int32)
        largest = int(mapped.max(initial=-1))
        if largest >= target_vocab_size:
            raise IncompatibleError(
                f"The vocabulary map of source {self.name!r} names target token {largest}, but "
                f"the target has {target_vocab_size} tokens: the map is for another target."
            )
        padding = max(0, self.vocab_size - len(mapped))
        return np.concatenate([mapped, np.full(padding, -1, np.int32)])


@dataclass(frozen=True)
class SourceSpan:
    """A source's rows of D documents that hold n target positions.

    Attributes:
        tokens: its tokens; documents without usable rows are empty.
        rows: one per token.
        row: int64 [n], index of the row aligned to each target position, −1 for none.
        kind: uint8 [n], the alignment kind.
        target: the n target positions' tokens.
        source: the source.
    """

    tokens: TokenTable
    rows: Rows
    row: npt.NDArray[np.int64]
    kind: npt.NDArray[np.uint8]
    target: TokenTable
    source: SourceInput

    @cached_property
    def labels(self) -> Labels:
        """What the source gives the next token at each target position."""
        return self._read_labels(None)

    def labels_where(self, wanted: npt.NDArray[np.bool_]) -> Labels:
        """`labels` at the wanted positions, bool [n], and nothing at the others."""
        return self.labels if "labels" in self.__dict__ else self._read_labels(wanted)

    def _read_labels(self, wanted: npt.NDArray[np.bool_] | None) -> Labels:
        if self.source.alignment is None:
            labels = own_labels(self.rows, self.row, _has_label(self.target))
        else:
            spelling = self.source.spelling
            labels = read_labels(
                self.tokens, self.rows, self.row, self.kind, self.target, spelling, wanted
            )
        return without_unknown(labels) if self.source.is_partial else labels

    @property
    def takes_part(self) -> npt.NDArray[np.bool_]:
        """Whether it has rows of the document, bool [D]."""
        return np.diff(self.tokens.document_offsets) > 0


def load_span(
    source: SourceInput,
    documents: npt.NDArray[np.int64],
    target: TokenTable,
    supervision: Supervision | None = None,
) -> SourceSpan:
    """Read a source's tokens, rows and alignment of some documents.

    Args:
        source: the source.
        documents: int64 [D] indices into the corpus.
        target: the target's tokens of the same documents.
        supervision: of a corpus of conversations; the target's tokens are marked by it. No row is
            aligned to a position whose next token does not count, and no row that predicts nothing
            which is trained on (`Supervision.used_rows`): a cache need not have it.

    Raises:
        IncompatibleError: the alignment does not fit the tokens.
        CorruptionError: its cache is damaged; names the file and the command that repairs it.
    """
    cache = source.cache
    corpus_offsets = cache.document_offsets
    usable = np.array([int(document) not in cache.skipped for document in documents], np.bool_)
    # np.diff of all offsets would cost every shard the whole corpus.
    lengths = np.where(usable, corpus_offsets[documents + 1] - corpus_offsets[documents], 0)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    row = np.full(target.num_tokens, -1, np.int64)
    kind = np.zeros(target.num_tokens, np.uint8)
    rows_of_runs: list[Rows] = []
    ids: list[npt.NDArray[np.int32]] = []
    ends: list[npt.NDArray[np.int32]] = []
    for first, stop in _runs(documents, usable):
        start, end = int(documents[first]), int(documents[stop - 1]) + 1
        flat = slice(int(corpus_offsets[start]), int(corpus_offsets[end]))
        with _errors_name(source):
            run_ids, run_ends = cache.read_tokens(flat.start, flat.stop)
            _check_tokens(source, run_ids)
            rows_of_runs.append(cache[flat])
        ids.append(run_ids)
        ends.append(run_ends)
        rows = slice(int(target.document_offsets[first]), int(target.document_offsets[stop]))
        target_lengths = np.diff(target.document_offsets[first : stop + 1])
        base = np.repeat(offsets[first:stop], target_lengths)
        if source.alignment is None:
            check_same_tokens(source, run_ids, target.token_ids[rows])
            row[rows] = base + _counts_within(target_lengths)
            kind[rows] = SPAN
            continue
        position, kinds = source.alignment.for_documents(start, end)
        length = np.repeat(lengths[first:stop], target_lengths)
        if len(position) != len(base) or np.any(position >= length):
            raise IncompatibleError(
                f"The alignment of source {source.name!r} does not fit the tokens of documents "
                f"{start} to {end - 1}: it was made for another cache or another target. "
                "Align again with `fusestore align`."
            )
        aligned = (position >= 0) & (kinds > 0)
        if source.draws or source.spelling is None:
            # Draws are unbiased, but a ratio of their counts, which a condition makes, is not.
            aligned &= kinds != INSIDE
        row[rows] = np.where(aligned, base + position, -1)
        kind[rows] = np.where(aligned, kinds, 0)
    if not rows_of_runs:
        rows_of_runs, ids, ends = [cache[0:0]], *([np.empty(0, np.int32)] for _ in range(2))
    table = TokenTable(np.concatenate(ids), np.concatenate(ends), offsets)
    whole = _concatenate(rows_of_runs)
    if source.is_partial:
        gone = row >= 0
        gone[gone] = np.isnan(whole.tail[row[gone]])
        row[gone], kind[gone] = -1, 0
        table = count_known(table, whole.label_logprob)
    if supervision is not None:
        used = (row >= 0) & np.append(target.is_counted[1:], False)
        used[used] = supervision.used_rows(table, documents)[row[used]]
        row[~used], kind[~used] = -1, 0
        table = supervision.mark(table, documents)
    return SourceSpan(table, whole, row, kind, target, source)


def _check_tokens(source: SourceInput, token_ids: npt.NDArray[np.int32]) -> None:
    """Check that tokens have a spelling: compiled loops look them up without another check."""
    limit = source.vocab_size or 2**31
    if source.spelling is not None:
        limit = len(source.spelling.lengths)
    if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < limit:
        raise CorruptionError(
            f"its tokens have ids from {token_ids.min()} to {token_ids.max()}; there are {limit}."
        )


def _has_label(target: TokenTable) -> npt.NDArray[np.bool_]:
    """Whether a next token follows in the document, bool [n]."""
    result = np.ones(target.num_tokens, np.bool_)
    lengths = np.diff(target.document_offsets)
    result[target.document_offsets[1:][lengths > 0] - 1] = False
    return result


def check_same_tokens(
    source: SourceInput, actual: npt.NDArray[np.integer], expected: npt.NDArray[np.integer]
) -> None:
    """Check that a source without an alignment has the target's own tokens (or offsets).

    Raises:
        IncompatibleError: they differ.
    """
    if not np.array_equal(actual, expected):
        raise IncompatibleError(
            f"Cache {source.name!r} is given without an alignment, but its tokens are not the "
            "target's. Align it with `fusestore align`."
        )


@contextlib.contextmanager
def _errors_name(source: SourceInput) -> Iterator[None]:
    """Add the damaged cache and the command that repairs it to an error, which names the file."""
    try:
        yield
    except CorruptionError as error:
        raise CorruptionError(
            f"Cache {source.name!r} is damaged: {error} `fusestore verify cache/{source.name} "
            "--repair` makes its damaged shards again. Then run the same command; finished shards "
            "are kept."
        ) from error


def _runs(
    documents: npt.NDArray[np.int64], usable: npt.NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """Stretches `[first, stop)` of usable documents that follow each other in the corpus."""
    first = 0
    while first < len(documents):
        stop = first + 1
        while (
            stop < len(documents)
            and usable[stop] == usable[first]
            and documents[stop] == documents[stop - 1] + 1
        ):
            stop += 1
        if usable[first]:
            yield first, stop
        first = stop


def _counts_within(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, … in each stretch of these lengths."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _concatenate(runs: list[Rows]) -> Rows:
    if len(runs) == 1:
        return runs[0]
    return Rows(
        np.concatenate([rows.ids for rows in runs]),
        np.concatenate([rows.logprobs for rows in runs]),
        np.concatenate([rows.tail for rows in runs]),
        np.concatenate([rows.label_logprob for rows in runs]),
    )
