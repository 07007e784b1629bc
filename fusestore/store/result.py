"""`StageResult`: what every stage function returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class StageResult(Generic[T]):
    """The artifact that a stage was asked for, and whether the stage had to work for it.

    Attributes:
        artifact: the complete artifact, opened.
        created: False if the artifact was there already and nothing was computed.
    """

    artifact: T
    created: bool
