"""A fit: the parameters of a learned strategy, and what they were fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from fusestore.fuse.choices import AcceptedKind, FitBy, FitMethod
from fusestore.store.manifest import Count, Frozen, Manifest
from fusestore.store.receipts import FileRecords

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FEATURES = ("entropy", "largest", "tail", "known", "agreement")
"""What a gate sees of a source's row; see `fusestore.fuse.fits.features`."""


class FitSource(Frozen):
    """A source of a fit. A map or alignment of None is the identity.

    Attributes:
        cache: name of its cache.
        model_digest: of the model that the cache was captured from.
        cache_digest, vocabulary_map_digest, alignment_digest: its rows in the target's tokens.
    """

    cache: str
    model_digest: str
    cache_digest: str
    vocabulary_map_digest: str | None
    alignment_digest: str | None


class FitFingerprint(Manifest):
    """Everything that the parameters depend on.

    Attributes:
        method: the learned strategy.
        by: what its weights depend on; `global` for every method but `em`.
        temperature: whether each source has a temperature of its own.
        corpus: name of the corpus, for messages.
        corpus_digest: of the corpus.
        split: the split that was read.
        target_digest: of the target's tokenizer.
        tokens_digest: of the target's tokens.
        kinds: alignment kinds that supervise.
        sources: in the recipe's order.
    """

    method: FitMethod
    by: FitBy
    temperature: bool
    corpus: str
    corpus_digest: str
    split: str
    target_digest: str
    tokens_digest: str
    kinds: tuple[AcceptedKind, ...]
    sources: tuple[FitSource, ...]


class GateParameters(Frozen):
    """A gate, see `fusestore.fuse.fits.gate`; one row of each per source.

    Attributes:
        mean, deviation: of the features.
        coefficients: of the scaled features; the last is the bias.
    """

    mean: tuple[tuple[float, ...], ...]
    deviation: tuple[tuple[float, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]


class FitManifest(Manifest):
    """The manifest of a fit; its digest identifies the fit.

    Attributes:
        fingerprint: what it was fitted on.
        num_positions: target positions that were read.
        temperatures: of each source.
        spreads: number of tokens over which each source's tail is spread, for its temperature.
        order: of the generalized mean; 1 is a mixture.
        weights: of the sources: everywhere, then by domain or by bin of entropy.
        domains: names of the domains.
        edges: ascending; between the bins of entropy, in nats.
        gate: the gate, for method `gate`.
        nats_even: mean −log p(next token) of an even mixture, over the positions that were read.
        nats_fitted: the same of the fitted fusion.
        files: every other file of the folder.
    """

    fingerprint: FitFingerprint
    num_positions: Count
    temperatures: tuple[float, ...]
    spreads: tuple[float, ...]
    order: float
    weights: tuple[tuple[float, ...], ...]
    domains: tuple[str, ...]
    edges: tuple[float, ...]
    gate: GateParameters | None
    nats_even: float
    nats_fitted: float
    files: FileRecords

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        count = len(self.fingerprint.sources)
        num_groups = 1
        if self.fingerprint.by == "domain":
            num_groups += len(self.domains)
        elif self.fingerprint.by == "entropy":
            num_groups += len(self.edges) + 1
        if len(self.temperatures) != count or min(self.temperatures, default=0.0) <= 0:
            raise ValueError("temperatures are not one positive number per source")
        if len(self.spreads) != count or min(self.spreads, default=0.0) < 1:
            raise ValueError("spreads are not one number of tokens per source")
        if len(self.weights) != num_groups or any(
            len(row) != count or min(row) <= 0 for row in self.weights
        ):
            raise ValueError("weights are not one positive number per group and source")
        if not 0 <= self.order <= 1:
            raise ValueError("order lies outside 0 to 1")
        if (self.gate is not None) != (self.fingerprint.method == "gate"):
            raise ValueError("the gate does not fit the method")
        if self.gate is not None:
            width = len(FEATURES)
            rows = [*self.gate.mean, *self.gate.deviation]
            sizes = {len(self.gate.mean), len(self.gate.deviation), len(self.gate.coefficients)}
            if (
                sizes != {count}
                or any(len(row) != width for row in rows)
                or any(len(row) != width + 1 for row in self.gate.coefficients)
                or any(min(row) <= 0 for row in self.gate.deviation)
            ):
                raise ValueError(f"the gate is not one of {count} sources and {width} features")
        return self


@dataclass(frozen=True)
class Fitted:
    """A fit, and the domains of the corpus to which it is applied.

    Attributes:
        manifest: the fit.
        domain: int32 [documents of the corpus], index of each document's row of weights; 0 for a
            domain that the fit has not seen. None unless the weights are by domain.
    """

    manifest: FitManifest
    domain: npt.NDArray[np.int32] | None = None
