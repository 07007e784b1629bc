"""Tallies: the sums that a forecast's figures are made of, added up chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fusestore.forecast.divergence import divergence, same_top
from fusestore.forecast.forecast import Agreement, MixtureForecast, Sees, SourceForecast
from fusestore.fuse.choices import LEARNED, FitBy, Granularity
from fusestore.fuse.combine import drop_below, hold_labels, mix, round_entries
from fusestore.fuse.fits.blend import blend
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.manifest import KIND_CODES
from fusestore.fuse.observation import BoolArray, Chunk, FloatArray, is_kept
from fusestore.fuse.project import SparseRows
from fusestore.fuse.scores import MAX_NATS, label_nats
from fusestore.fuse.source_weights import weigh
from fusestore.fuse.strategies import SCORE_FREE, get_strategy


class Tally(Protocol):
    """Counts every chunk of a split once."""

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""


@dataclass(frozen=True)
class Mixture:
    """A strategy by a granularity over some of the sources, by index."""

    strategy: str
    granularity: Granularity
    members: tuple[int, ...]
    fit_by: FitBy | None = None

    @classmethod
    def of(
        cls,
        strategy: str,
        granularity: Granularity,
        members: tuple[int, ...],
        fit_by: FitBy = "global",
    ) -> Mixture:
        """The mixture; one source alone, or a strategy without scores, has one granularity."""
        if len(members) == 1:
            strategy = "single"
        if strategy in LEARNED:
            return cls(strategy, "document", members, fit_by if strategy == "em" else "global")
        return cls(strategy, "document" if strategy in SCORE_FREE else granularity, members)

    @property
    def sees(self) -> Sees:
        """What its weights are made of that a prediction would not have."""
        if self.fit_by is not None or self.strategy in SCORE_FREE:
            return "nothing"
        return "label" if self.granularity == "token" else "text"


class SplitTally:
    """Counts over the whole split."""

    def __init__(self) -> None:
        self.predicted = self.num_bytes = self.common = self.documents = self.masked = 0

    def add(self, chunk: Chunk) -> None:
        """Count a chunk."""
        self.predicted += int(chunk.predicted.sum())
        if chunk.fusion.supervision is not None:
            self.masked += int((~chunk.predicted).sum())
        self.num_bytes += int(chunk.label_bytes.sum())
        self.common += int(chunk.common.sum())
        self.documents += int(chunk.counted.sum())


class MixtureTally:
    """Sums over the positions that a mixture supervises."""

    def __init__(self, mixture: Mixture, fitted: Fitted | None = None) -> None:
        self.mixture, self.fitted = mixture, fitted
        self.covered = self.num_bytes = self.common_bytes = self.in_tail = 0
        self.nats = self.stored_nats = self.common_nats = self.tail_mass = 0.0

    def add(self, chunk: Chunk) -> None:
        """Weigh, look up the next tokens, and mix as materializing would."""
        fusion = chunk.fusion
        covered, nats, (ids, logprobs, tail) = (
            self._weighed(chunk) if self.fitted is None else self._learned(chunk, self.fitted)
        )
        round_entries(fusion.recipe.logprob_step, ids, logprobs, tail)
        labels, label_bytes = chunk.labels[covered], chunk.label_bytes[covered]
        common = chunk.common[covered]
        self.covered += len(covered)
        self.num_bytes += int(label_bytes.sum())
        self.nats += float(nats.sum())
        self.stored_nats += float(label_nats(ids, logprobs, tail, labels, fusion.vocab_size).sum())
        self.in_tail += int((~is_kept(ids, logprobs, labels)).sum())
        self.tail_mass += float(np.exp(tail.astype(np.float64)).sum())
        self.common_nats += float(nats[common].sum())
        self.common_bytes += int(label_bytes[common].sum())

    def _learned(
        self, chunk: Chunk, fitted: Fitted
    ) -> tuple[npt.NDArray[np.int64], FloatArray, SparseRows]:
        """Covered positions, nats of their next tokens, and their rows, by a fit."""
        recipe = chunk.fusion.recipe
        result = blend(
            *(fitted, chunk, chunk.fusion.vocab_size, recipe.top_k),
            min_probability=recipe.min_probability,
            keep_label=bool(recipe.keep_label),
            members=self.mixture.members,
        )
        covered = np.flatnonzero(chunk.predicted & (result.weights > 0).any(axis=1))
        nats = np.minimum(-result.label_logprob[covered], MAX_NATS)
        ids, logprobs, tail = result.rows
        return covered, nats, (ids[covered], logprobs[covered], tail[covered])

    def _weighed(self, chunk: Chunk) -> tuple[npt.NDArray[np.int64], FloatArray, SparseRows]:
        """Covered positions, nats of their next tokens, and their rows, by scores."""
        fusion, mixture = chunk.fusion, self.mixture
        members = list(mixture.members)
        scores, unit = chunk.scores[mixture.granularity]
        fixed = np.array([fusion.recipe.sources[index].weight for index in members])
        weights = weigh(
            mixture.strategy, fixed, scores[:, members], unit, chunk.allowed[:, members]
        )
        covered = np.flatnonzero(chunk.predicted & (weights > 0).any(axis=1))
        weights, rows = weights[covered], chunk.rows[covered[:, None], members]
        with np.errstate(divide="ignore"):
            terms = np.log(weights) + chunk.label_logprob[covered[:, None], members]
        nats = np.minimum(-np.logaddexp.reduce(terms, axis=1), MAX_NATS)
        ids, logprobs, tail = mix(rows, weights, *chunk.projected, fusion.recipe.top_k)
        drop_below(fusion.recipe.min_probability, ids, logprobs, tail)
        if fusion.recipe.keep_label:
            found = chunk.label_found[covered[:, None], members] | (weights == 0)
            labels = chunk.labels[covered]
            hold_labels(found.all(axis=1), labels, np.exp(-nats), ids, logprobs, tail)
        return covered, nats, (ids, logprobs, tail)

    @property
    def rank(self) -> tuple[bool, float]:
        """The bits per byte that greedy growth minimizes; a mixture without any comes last."""
        bits = _bits(self.common_nats, self.common_bytes)
        return (True, 0.0) if bits is None else (False, bits)

    def forecast(self, fusion: Fusion, whole: SplitTally) -> MixtureForecast:
        """The figures."""
        mixture = self.mixture
        return MixtureForecast(
            strategy=mixture.strategy,
            granularity=None if mixture.sees == "nothing" else mixture.granularity,
            fit_by=mixture.fit_by,
            sees=mixture.sees,
            sources=tuple(fusion.sources[index].name for index in mixture.members),
            covered=mean(self.covered, whole.predicted) or 0.0,
            nats_per_token=mean(self.nats, self.covered),
            bits_per_byte=_bits(self.nats, self.num_bytes),
            stored_bits_per_byte=_bits(self.stored_nats, self.num_bytes),
            common_bits_per_byte=_bits(self.common_nats, self.common_bytes),
            label_in_tail=mean(self.in_tail, self.covered),
            tail_mass=mean(self.tail_mass, self.covered),
        )


class SourceTally:
    """Sums over the documents of a source and over the positions it may supervise."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.documents = self.documents_won = self.documents_compared = 0
        self.span = self.inside = self.mined = self.allowed = self.labeled = self.guessed = 0
        self.own_bytes = self.tokens_won = self.tokens_compared = 0
        self.own_nats = self.unmapped = self.tail = 0.0
        self.document_margin = self.token_margin = 0.0

    def add(self, chunk: Chunk) -> None:
        """Count a chunk; a document where it begins."""
        index, kinds = self.index, chunk.kinds[:, self.index]
        counted = chunk.counted & chunk.takes_part[:, index]
        self.documents += int(counted.sum())
        self.own_nats += float(chunk.amounts[index].nats[counted].sum())
        self.own_bytes += int(chunk.amounts[index].num_bytes[counted].sum())
        won, margin = _wins(chunk.document_scores[chunk.counted], index)
        self.documents_won += int(won.sum())
        self.documents_compared += int(np.isfinite(margin[won]).sum())
        self.document_margin += float(margin[won & np.isfinite(margin)].sum())

        rows = chunk.rows[chunk.allowed[:, index], index]
        self.span += int((kinds == KIND_CODES["span"]).sum())
        self.inside += int((kinds == KIND_CODES["inside"]).sum())
        self.mined += int((kinds == KIND_CODES["mined"]).sum())
        self.allowed += len(rows)
        self.unmapped += float(chunk.unmapped[rows].sum())
        self.tail += float(np.exp(chunk.projected[2][rows].astype(np.float64)).sum())
        labeled = chunk.allowed[:, index] & chunk.predicted
        self.labeled += int(labeled.sum())
        self.guessed += int((~chunk.label_found[labeled, index]).sum())
        won, margin = _wins(-chunk.label_logprob[chunk.common], index)
        self.tokens_won += int(won.sum())
        self.tokens_compared += int(np.isfinite(margin[won]).sum())
        self.token_margin += float(margin[won & np.isfinite(margin)].sum())

    def forecast(self, fusion: Fusion, whole: SplitTally, alone: MixtureForecast) -> SourceForecast:
        """The figures, with those of the source as the only one."""
        source = fusion.sources[self.index]
        margin = mean(self.token_margin, self.tokens_compared)
        # A projected row's tail is its cached tail and what the map sends nowhere.
        tail = mean(max(0.0, self.tail - self.unmapped), self.allowed)
        return SourceForecast(
            cache=source.name,
            exact=source.target_id is None and source.alignment is None,
            own_bits_per_byte=_bits(self.own_nats, self.own_bytes),
            alone=alone,
            positions_span=self.span / fusion.num_tokens,
            positions_inside=self.inside / fusion.num_tokens,
            positions_mined=self.mined / fusion.num_tokens,
            positions_masked=whole.masked / fusion.num_tokens,
            tail_mass=tail,
            unmapped_mass=mean(self.unmapped, self.allowed),
            label_guessed=mean(self.guessed, self.labeled),
            documents=self.documents,
            documents_won=mean(self.documents_won, whole.documents) or 0.0,
            document_margin=mean(self.document_margin, self.documents_compared),
            tokens_won=mean(self.tokens_won, whole.common),
            token_margin=None if margin is None else margin / float(np.log(2.0)),
        )


def _wins(scores: FloatArray, index: int) -> tuple[BoolArray, FloatArray]:
    """Whether a source's score is the lowest, bool [n], and by how much; +inf or NaN if alone."""
    won: BoolArray = get_strategy("mince")(scores, np.ones(scores.shape[1]))[:, index] > 0
    others = np.where(np.isnan(scores), np.inf, scores)
    others[:, index] = np.inf
    with np.errstate(invalid="ignore"):
        return won, others.min(axis=1, initial=np.inf) - scores[:, index]


class PairTally:
    """Sums over the positions that two sources may supervise."""

    def __init__(self, first: int, second: int) -> None:
        self.first, self.second = first, second
        self.num_positions = self.same = 0
        self.forth = self.back = 0.0

    def add(self, chunk: Chunk) -> None:
        """Compare the two at every position of a chunk."""
        both = chunk.allowed[:, self.first] & chunk.allowed[:, self.second]
        left = chunk.projected_rows(chunk.rows[both, self.first])
        right = chunk.projected_rows(chunk.rows[both, self.second])
        self.num_positions += int(both.sum())
        self.forth += float(divergence(left, right, chunk.fusion.vocab_size).sum())
        self.back += float(divergence(right, left, chunk.fusion.vocab_size).sum())
        self.same += int(same_top(left, right).sum())

    def forecast(self, fusion: Fusion) -> Agreement:
        """The figures."""
        return Agreement(
            first=fusion.sources[self.first].name,
            second=fusion.sources[self.second].name,
            num_positions=self.num_positions,
            divergence=mean(self.forth, self.num_positions),
            divergence_back=mean(self.back, self.num_positions),
            same_top=mean(self.same, self.num_positions),
        )


def mean(amount: float, count: int) -> float | None:
    """`amount / count`, None where nothing was counted."""
    return amount / count if count else None


def _bits(nats: float, num_bytes: int) -> float | None:
    return nats / float(np.log(2.0)) / num_bytes if num_bytes else None
