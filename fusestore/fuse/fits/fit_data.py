"""What learned strategies are fitted to: labels, rows and features of one split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from fusestore.errors import InvalidInputError
from fusestore.fuse import observation
from fusestore.fuse.fits.blend import RowRule, tempered
from fusestore.fuse.fits.features import row_features
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.observation import (
    BoolArray,
    Chunk,
    FloatArray,
    Observed,
    chunk_starts,
    read_chunks,
)
from fusestore.fuse.project import Float32Array
from fusestore.progress import Progress

MOST_POSITIONS = 2**20
SAMPLE = 2**15


@dataclass(frozen=True)
class Terms:
    """What weights are fitted to: n positions with a next token and a row.

    Attributes:
        allowed: bool [n, S].
        raw: float64 [n, S], log-probability of the next token.
        tempered: float64 [n, S], the same at the fitted temperatures.
        features: float32 [n, S, F]; empty if no fit needs them.
        document: int64 [n], index in the corpus.
    """

    allowed: BoolArray
    raw: FloatArray
    tempered: FloatArray
    features: Float32Array
    document: npt.NDArray[np.int64]


class Reader:
    """Reads the positions that are fitted to, once for each pass."""

    def __init__(self, fusion: Fusion, passes: int, progress: Progress) -> None:
        self.fusion = fusion
        starts = chunk_starts(fusion.num_tokens, MOST_POSITIONS)
        # The split's last chunk, which may be shorter, is read only where all chunks are.
        self.num_positions = min(fusion.num_tokens, observation.CHUNK_ROWS * len(starts))
        self._progress, self._total, self._done = progress, passes * self.num_positions, 0

    def chunks(self, use: Callable[[Chunk], None]) -> None:
        """Read everything once."""
        for chunk in read_chunks(self.fusion, ["document"], MOST_POSITIONS):
            use(chunk)
            self._done += chunk.num_positions
            self._progress(min(self._done, self._total), self._total)


def _usable(observed: Observed) -> npt.NDArray[np.int64]:
    return np.flatnonzero(observed.predicted & observed.allowed.any(axis=1))


def _check_any(count: int, fusion: Fusion) -> None:
    if not count:
        raise InvalidInputError(
            f"No source may supervise a position of split {fusion.recipe.split!r} that has a next "
            "token, so nothing can be fitted to it. Choose another fit_split, or accept more kinds."
        )


def sample_of(reader: Reader) -> Observed:
    """About `SAMPLE` positions with their rows, spread evenly."""
    stride = -(-reader.num_positions // SAMPLE)
    parts: list[Observed] = []

    def use(chunk: Chunk) -> None:
        parts.append(take(chunk, _usable(chunk)[::stride]))

    reader.chunks(use)
    sample = join(parts)
    _check_any(sample.num_positions, reader.fusion)
    return sample


def take(observed: Observed, positions: npt.NDArray[np.int64]) -> Observed:
    """Some positions with their own rows alone."""
    rows = observed.rows[positions]
    present = rows >= 0
    kept = rows[present]
    numbered = np.full(rows.shape, -1, np.int64)
    numbered[present] = np.arange(len(kept))
    return Observed(
        document=observed.document[positions],
        labels=observed.labels[positions],
        allowed=observed.allowed[positions],
        rows=numbered,
        projected=observed.projected_rows(kept),
        unmapped=observed.unmapped[kept],
        known=observed.known[positions],
        label_logprob=observed.label_logprob[positions],
        label_found=observed.label_found[positions],
    )


def join(parts: Sequence[Observed]) -> Observed:
    """All positions of several, in order. The parts have as many entries a row."""
    counts = [len(part.unmapped) for part in parts]
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    rows = [
        np.where(part.rows >= 0, part.rows + first, -1)
        for part, first in zip(parts, firsts, strict=True)
    ]
    ids, logprobs, tail = zip(*(part.projected for part in parts), strict=True)
    return Observed(
        document=np.concatenate([part.document for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        allowed=np.concatenate([part.allowed for part in parts]),
        rows=np.concatenate(rows),
        projected=(np.concatenate(ids), np.concatenate(logprobs), np.concatenate(tail)),
        unmapped=np.concatenate([part.unmapped for part in parts]),
        known=np.concatenate([part.known for part in parts]),
        label_logprob=np.concatenate([part.label_logprob for part in parts]),
        label_found=np.concatenate([part.label_found for part in parts]),
    )


def terms_of(reader: Reader, rule: RowRule, vocab_size: int, *, needs_features: bool) -> Terms:
    """Labels, and features if they are needed, of all positions."""
    parts: list[Terms] = []

    def use(chunk: Chunk) -> None:
        at = _usable(chunk)
        hot = tempered(chunk, rule, chunk.labels, vocab_size)[1]
        features = np.zeros((len(at), chunk.allowed.shape[1], 0), np.float32)
        if needs_features:
            features = row_features(chunk.rows, chunk.projected, chunk.known)[at]
        parts.append(
            Terms(chunk.allowed[at], chunk.label_logprob[at], hot[at], features, chunk.document[at])
        )

    reader.chunks(use)
    names = [each.name for each in fields(Terms)]
    terms = Terms(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    _check_any(len(terms.allowed), reader.fusion)
    return terms
