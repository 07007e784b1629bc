"""Vocabulary maps and token alignments between a source and the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusestore.align.functions import token_alignment, vocabulary_map

__all__ = ["token_alignment", "vocabulary_map"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attributes are of any type
    """The two public functions, imported on first use because numba takes a second to import."""
    if name in __all__:
        from fusestore.align import functions

        return getattr(functions, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
