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

    def _repr_html_(self) -> str | None:
        """That of the artifact, if it has one, after a line on what the stage did."""
        made = getattr(self.artifact, "_repr_html_", lambda: None)()
        if made is None:
            return None
        done = "It was made now." if self.created else "It was there; nothing was computed."
        return f"<p>{done}</p>{made}"
