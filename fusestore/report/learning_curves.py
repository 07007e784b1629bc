"""Learning curves: held-out bits per byte against training tokens, and what a fusion saves.

A curve is a sequence of points (training tokens, bits per byte) by rising tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fusestore.train.manifest import TrainingManifest

Curve = Sequence[tuple[int, float]]
"""Points (training tokens, held-out bits per byte) by rising tokens."""


@dataclass(frozen=True)
class LearningCurve:
    """The held-out scores of one training run.

    Attributes:
        name: of the trained model.
        objective: fuse, kd or clm.
        base_model: digest of the model that training started from.
        tokens: training tokens at each evaluation, rising from 0.
        bits_per_byte: of the held-out text at each evaluation; lower is better.
    """

    name: str
    objective: str
    base_model: str
    tokens: tuple[int, ...]
    bits_per_byte: tuple[float, ...]

    @classmethod
    def of(cls, name: str, manifest: TrainingManifest) -> Self | None:
        """The curve of a trained model; None without an evaluation between first and last step.

        A manifest counts the tokens of all steps together. As steps read windows of one length,
        each has its even share of them.
        """
        plan = manifest.plan
        scored = [point for point in manifest.evaluations if "bits_per_byte" in point.metrics]
        if len(scored) < 3:
            return None
        return cls(
            name=name,
            objective=plan.settings.objective,
            base_model=plan.base_model_digest,
            tokens=tuple(
                round(manifest.num_tokens * point.step / plan.total_steps) for point in scored
            ),
            bits_per_byte=tuple(point.metrics["bits_per_byte"] for point in scored),
        )

    @property
    def points(self) -> list[tuple[int, float]]:
        """Pairs of tokens and bits per byte."""
        return list(zip(self.tokens, self.bits_per_byte, strict=True))

    @property
    def title(self) -> str:
        """Its name, and what it learns from."""
        return f"{self.name} ({_LEARNS_FROM[self.objective]})"


_LEARNS_FROM = {
    "clm": "the text alone",
    "fuse": "text and fused distributions",
    "kd": "fused distributions alone",
}


@dataclass(frozen=True)
class TokenSaving:
    """What distributions bring: a run that learns from them, beside a run on the text alone.

    Attributes:
        run: the run with distributions.
        baseline: the run on the text alone, from the same model.
        best_of_baseline: its fewest bits per byte.
        tokens_of_baseline: training tokens at which it had them.
        best_of_run: the fewest bits per byte of `run`.
        tokens_of_run: training tokens at which `run` had at most `best_of_baseline`; None: never.
    """

    run: str
    baseline: str
    best_of_baseline: float
    tokens_of_baseline: int
    best_of_run: float
    tokens_of_run: int | None

    @property
    def sentence(self) -> str:
        """What that means, in one sentence."""
        change = self.best_of_run - self.best_of_baseline
        apart = f"{abs(change):.4f} {'lower' if change < 0 else 'higher'}" if change else "the same"
        rival = (
            f"the best of {self.baseline}, which learns from the text alone "
            f"({self.best_of_baseline:.4f} bits per byte after {self.tokens_of_baseline:,} tokens)"
        )
        if self.tokens_of_run is None:
            return (
                f"{self.run} does not reach {rival}: its own best is {self.best_of_run:.4f}, "
                f"{apart}."
            )
        return (
            f"{self.run} reaches {rival}, after {self.tokens_of_run:,} tokens, "
            f"{_times(self.tokens_of_baseline, self.tokens_of_run)}; its own best is "
            f"{self.best_of_run:.4f}, {apart}."
        )


def token_savings(curves: Sequence[LearningCurve]) -> list[TokenSaving]:
    """Each run with distributions beside the best run on the text alone from the same model."""
    savings = []
    for curve in curves:
        rivals = [
            other
            for other in curves
            if other.objective == "clm" and other.base_model == curve.base_model
        ]
        if curve.objective == "clm" or not rivals:
            continue
        rival = min(rivals, key=lambda other: best(other.points)[1])
        tokens, bits_per_byte = best(rival.points)
        savings.append(
            TokenSaving(
                run=curve.name,
                baseline=rival.name,
                best_of_baseline=bits_per_byte,
                tokens_of_baseline=tokens,
                best_of_run=best(curve.points)[1],
                tokens_of_run=tokens_to_reach(curve.points, bits_per_byte),
            )
        )
    return savings


def best(curve: Curve) -> tuple[int, float]:
    """The first point with the fewest bits per byte."""
    return min(curve, key=lambda point: (point[1], point[0]))


def tokens_to_reach(curve: Curve, bits_per_byte: float) -> int | None:
    """Training tokens of the first point with at most so many bits per byte; None: there is none.

    Between evaluations nothing is known, so the true number may be smaller.
    """
    return next((tokens for tokens, bits in curve if bits <= bits_per_byte), None)


def _times(slower: int, faster: int) -> str:
    """How many times fewer or more tokens the second number is."""
    if faster == slower:
        return "as many"
    if faster < slower:
        return f"{slower / max(1, faster):.1f} times fewer"
    return f"{faster / max(1, slower):.1f} times as many"
