"""The token viewer's data: what each source and the fused row say at each token of a document."""

from __future__ import annotations

import base64
import gzip
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.fuse.fits.blend import blend
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.observation import Observed, observe
from fusestore.fuse.project import SparseRows
from fusestore.fuse.scores import document_amounts
from fusestore.fuse.shard import fuse_rows
from fusestore.fuse.source_weights import (
    document_scores,
    load_spans,
    position_weights,
    surround,
)

NO_VALUE = 65_535
"""Code of a log-probability that is unknown, and of an entry that is not there."""

_PER_NAT = 1_000
_PAIRS_AT_ONCE = 2_048


@dataclass(frozen=True)
class DocumentRows:
    """A document of n target tokens with S sources, of which E entries each are shown.

    Row i is the distribution of the token after token i.

    Attributes:
        document: its index in the corpus.
        token_ids: int32 [n].
        weights: float64 [n, S] of the fused row; all 0 where no source supervises.
        kinds: uint8 [n, S], alignment kind of each source.
        labels: float64 [n, S + 1], log-probability of the next token by each source and by the
            fused row; NaN where it is unknown.
        ids: int32 [n, S + 1, E], entries projected into target tokens, the fused row's last.
        logprobs: float32 [n, S + 1, E]; −inf for entries that are not there.
        fused_kind: uint8 [n]: see `KIND_NAMES`.
        disagreement: float64 [n], see `disagreement`; NaN with fewer than two sources.
    """

    document: int
    token_ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float64]
    kinds: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int32]
    logprobs: npt.NDArray[np.float32]
    fused_kind: npt.NDArray[np.uint8]
    disagreement: npt.NDArray[np.float64]

    def pack(self, places: npt.NDArray[np.int64], wide: bool) -> str:
        """The arrays end to end, compressed, in base64, as the page's script reads them.

        Args:
            places: int64 [V], index of each token id in the page's list of texts.
            wide: whether these indices need four bytes instead of two.
        """
        index = "<u4" if wide else "<u2"
        arrays = (
            places[self.token_ids].astype(index),
            places[self.ids].astype(index),
            _coded(self.logprobs),
            _coded(self.labels),
            np.where(np.isnan(self.disagreement), 255, np.round(254 * self.disagreement)).astype(
                np.uint8
            ),
            np.round(255 * self.weights).astype(np.uint8),
            self.kinds.astype(np.uint8),
            self.fused_kind.astype(np.uint8),
        )
        data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
        return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def document_rows_of(fusion: Fusion, index: int, entries: int) -> DocumentRows:
    """What is said at each token of the split's document of this index.

    Raises:
        As for `fuse_rows`.
    """
    start, stop = int(fusion.offsets[index]), int(fusion.offsets[index + 1])
    fused, _ = fuse_rows(fusion, start, stop)
    recipe = fusion.recipe
    stretch = surround(fusion, start, stop, whole_windows=recipe.granularity == "window")
    spans = load_spans(fusion, stretch)
    observed = observe(fusion, stretch, spans)
    if fusion.fitted is None:
        amounts = [document_amounts(span.tokens, span.rows.label_logprob) for span in spans]
        scores = document_scores(fusion, stretch, spans, amounts)
        weights = position_weights(fusion, stretch, spans, scores)[stretch.asked]
        mixed = np.log(np.maximum(np.sum(weights * np.exp(observed.label_logprob), axis=1), 1e-300))
    else:
        result = blend(
            *(fusion.fitted, observed, fusion.vocab_size, recipe.top_k),
            min_probability=recipe.min_probability,
            keep_label=bool(recipe.keep_label),
        )
        weights, mixed = result.weights, result.label_logprob
    predicted = observed.predicted
    held = np.isfinite(fused.logprobs) & (fused.ids == fused.next_ids[:, None])
    in_row = np.where(held, fused.logprobs, -np.inf).max(axis=1)
    mixed = np.where(held.any(axis=1), in_row, np.where(weights.any(axis=1), mixed, np.nan))
    by_source = np.where(observed.allowed, observed.label_logprob, np.nan)
    labels = np.where(predicted[:, None], np.column_stack([by_source, mixed]), np.nan)
    ids, logprobs = _first_entries(observed, fused.ids, fused.logprobs, entries)
    return DocumentRows(
        document=int(fusion.documents[index]),
        token_ids=fused.input_ids,
        weights=weights,
        kinds=np.stack([span.kind[stretch.asked] for span in spans], axis=1),
        labels=labels,
        ids=ids,
        logprobs=logprobs,
        fused_kind=fused.kind,
        disagreement=_disagreements(observed),
    )


def disagreement(left: SparseRows, right: SparseRows) -> npt.NDArray[np.float64]:
    """The least total variation distance that n pairs of rows can have, float64 [n] in [0, 1].

    It is 1 − Σ min(p, q) over tokens. Of the tails only their masses are known, so they count as
    if they lay on the same tokens.
    """
    result = np.empty(len(left[2]), np.float64)
    for first in range(0, len(result), _PAIRS_AT_ONCE):
        part = slice(first, first + _PAIRS_AT_ONCE)
        p, q = np.exp(left[1][part].astype(float)), np.exp(right[1][part].astype(float))
        same = left[0][part][:, :, None] == right[0][part][:, None, :]
        shared = np.where(same, np.minimum(p[:, :, None], q[:, None, :]), 0.0).sum(axis=(1, 2))
        tails = np.exp(np.minimum(left[2][part], right[2][part]).astype(float))
        result[part] = np.clip(1.0 - shared - tails, 0.0, 1.0)
    return result


def shown_token(token: bytes) -> str:
    """A token's bytes as text that a page can show: controls and invalid UTF-8 are escaped.

    Line ends and tabs stay. Characters that change the direction of text are controls too.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character)[0] != "C"
        else character.encode("unicode_escape").decode()
        for character in token.decode("utf-8", "backslashreplace")
    )


def token_places(
    documents: Sequence[DocumentRows], vocab_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The ids that occur, int64 rising, and of every id its index among them, int64 [V]."""
    occurring = np.zeros(vocab_size, np.bool_)
    occurring[0] = True  # What stands in entries that are not there.
    for document in documents:
        occurring[document.token_ids] = True
        occurring[document.ids] = True
    return np.flatnonzero(occurring), np.cumsum(occurring) - 1


def _coded(logprobs: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Thousandths of a nat below 0."""
    finite = np.isfinite(logprobs)
    steps = np.round(-_PER_NAT * np.where(finite, logprobs, 0.0))
    return np.where(finite, np.clip(steps, 0, NO_VALUE - 1), NO_VALUE).astype("<u2")


def _first_entries(
    observed: Observed,
    fused_ids: npt.NDArray[np.int32],
    fused_logprobs: npt.NDArray[np.float32],
    entries: int,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The first entries of each source and of the fused row; [n, S + 1, E]."""
    count, sources = observed.rows.shape
    ids = np.zeros((count, sources + 1, entries), np.int32)
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    for source in range(sources):
        here = np.flatnonzero(observed.rows[:, source] >= 0)
        row_ids, row_logprobs, _ = observed.projected_rows(observed.rows[here, source])
        width = min(entries, row_ids.shape[1])
        ids[here, source, :width] = row_ids[:, :width]
        logprobs[here, source, :width] = row_logprobs[:, :width]
    width = min(entries, fused_ids.shape[1])
    ids[:, sources, :width] = fused_ids[:, :width]
    logprobs[:, sources, :width] = fused_logprobs[:, :width]
    ids[~np.isfinite(logprobs)] = 0
    return ids, logprobs


def _disagreements(observed: Observed) -> npt.NDArray[np.float64]:
    """The largest disagreement of two sources at each position; NaN where fewer have a row."""
    rows = observed.rows
    result = np.full(len(rows), np.nan)
    for first in range(rows.shape[1]):
        for second in range(first):
            both = np.flatnonzero((rows[:, first] >= 0) & (rows[:, second] >= 0))
            apart = disagreement(
                observed.projected_rows(rows[both, first]),
                observed.projected_rows(rows[both, second]),
            )
            result[both] = np.fmax(result[both], apart)
    return result
