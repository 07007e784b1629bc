"""`StageResult`: what every stage function returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class StageResult(Generic[T]):
    """The artifact that a stage returns, and whether the stage made it.

    Attributes:
        artifact: the complete artifact, opened.
        created: False if the artifact existed already and nothing was computed.
    """

    artifact: T
    created: bool
