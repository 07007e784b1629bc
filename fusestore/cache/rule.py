"""`Rule`: which entries of a distribution a cache keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuleName = Literal["top-k", "top-p", "sampled"]


@dataclass(frozen=True)
class Rule:
    """Which entries of a distribution are kept.

    Attributes:
        name: `top-k`: the k most likely tokens. `top-p`: of these as few as reach mass p.
            `sampled`: what k draws from the distribution fall on, with their counts.
        top_k: the most entries of a row; for `sampled`, how often is drawn.
        top_p: for `top-p` alone.
        seed: for `sampled` alone.

    Raises:
        ValueError: a setting is missing, or has no effect with this rule.
    """

    name: RuleName
    top_k: int
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.name == "top-p" and self.top_p is None:
            raise ValueError("selection top-p needs top_p, the mass to reach; 0.95, for instance")
        if self.name != "top-p" and self.top_p is not None:
            raise ValueError(f"top_p is for selection top-p; selection is {self.name!r}")
        if self.name == "sampled" and self.seed is None:
            raise ValueError("selection sampled needs a seed")
        if self.name != "sampled" and self.seed is not None:
            raise ValueError(f"seed is for selection sampled; selection is {self.name!r}")
