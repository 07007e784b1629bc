"""`FusionObjective`: how the loss weights text and fused distributions, and compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fusestore.errors import IncompatibleError, InvalidInputError
from fusestore.losses.divergence_registry import check_divergence, is_unbiased

TailMode = Literal["renormalize", "ghost"]

DEFAULT_LM_WEIGHT = 0.5
DEFAULT_TAIL: TailMode = "ghost"


@dataclass(frozen=True)
class FusionObjective:
    """λ · CE(next token) + (1 − λ) · T² · D(P at T, Q at T); see docs/losses.md.

    Attributes:
        lm_weight: λ in [0, 1], the weight of the text's own next tokens.
        temperature: T > 0, of both distributions.
        tail: how the mass outside the kept entries is treated. `renormalize`: the kept entries are
            scaled to sum to 1. `ghost`: that mass is one more outcome, compared with the student's
            mass outside the kept ids.
        divergence: D. `cross_entropy` is FuseLLM's. `forward_kl` has the same gradient, and its
            smallest value is 0.
        temperature_squared: whether the fused term is multiplied by T², which keeps its gradient
            as large as at T = 1 (Hinton et al., 2015).

    Raises:
        InvalidInputError: a value outside its range.
    """

    lm_weight: float = DEFAULT_LM_WEIGHT
    temperature: float = 1.0
    tail: TailMode = DEFAULT_TAIL
    divergence: str = "cross_entropy"
    temperature_squared: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.lm_weight <= 1.0:
            raise InvalidInputError(f"lm_weight is {self.lm_weight}; it must lie in [0, 1].")
        if not 0.0 < self.temperature < float("inf"):
            raise InvalidInputError(
                f"temperature is {self.temperature}; it must be a positive number."
            )
        if self.tail not in get_args(TailMode):
            raise InvalidInputError(
                f"tail is {self.tail!r}; it must be one of {get_args(TailMode)}."
            )
        check_divergence(self.divergence)

    @property
    def fused_factor(self) -> float:
        """Factor of the mean divergence, before λ."""
        return self.temperature**2 if self.temperature_squared else 1.0

    def check_samples(self, where: str) -> None:
        """Check that rows that are samples give an unbiased gradient.

        Args:
            where: name, in the message, of the dataset that has the samples.

        Raises:
            IncompatibleError: the gradient would be biased under this objective.
        """
        if self.lm_weight == 1.0:
            return
        if self.temperature != 1.0:
            raise IncompatibleError(
                f"temperature is {self.temperature}, but {where} has samples of its sources' "
                "distributions, which are unbiased only at temperature 1: a power of an estimate "
                "does not estimate the power. Use temperature 1, or distributions captured as "
                "top-k."
            )
        if not is_unbiased(self.divergence):
            raise IncompatibleError(
                f"divergence is {self.divergence!r}, but {where} has samples of its sources' "
                "distributions, which would bias it. Use cross_entropy or forward_kl, which have "
                "gradients that are linear in them, or distributions captured as top-k."
            )
