"""`Rule`: selects the entries of a distribution that a cache keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuleName = Literal["top-k", "top-p", "sampled"]


@dataclass(frozen=True)
class Rule:
    """Selects the entries of a distribution that are kept.

    Attributes:
        name: `top-k`: the k most likely tokens. `top-p`: of these as few as reach mass p.
            `sampled`: the tokens of k draws from the distribution, with their counts.
        top_k: the most entries of a row; for `sampled`, the number of draws.
        top_p: the mass to reach; for `top-p` alone.
        seed: of the draws; for `sampled` alone.

    Raises:
        ValueError: a setting is missing, or has no effect with this rule.
    """

    name: RuleName
    top_k: int
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.name == "top-p" and self.top_p is None:
            raise ValueError("selection top-p needs top_p, the mass to reach, such as 0.95")
        if self.name != "top-p" and self.top_p is not None:
            raise ValueError(f"top_p is for selection top-p; selection is {self.name!r}")
        if self.name == "sampled" and self.seed is None:
            raise ValueError("selection sampled needs a seed")
        if self.name != "sampled" and self.seed is not None:
            raise ValueError(f"seed is for selection sampled; selection is {self.name!r}")
