"""The inputs of artifacts, found in their store by digest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusestore.errors import NotFoundError
from fusestore.store.artifact_types import Input
from fusestore.store.inventory import choose_artifact
from fusestore.store.layout import Store
from fusestore.store.lineage import FoundInput, Lineage
from fusestore.store.registry import Artifact, kind_named


def with_inputs(store: Store, paths: Sequence[str]) -> list[str]:
    """The artifacts and all their direct and indirect inputs, inputs first, each once.

    Raises:
        NotFoundError: the store does not have an input any more.
    """

    def all_of(artifact: Artifact, found: FoundInput) -> bool:
        if found.artifact is None:
            raise _missing(store, found.input, artifact.path)
        return True

    return _closure(store, paths, all_of)


def with_needed(store: Store, paths: Sequence[str]) -> list[str]:
    """The artifacts, each after the inputs that reading it needs, if the store has them."""
    return _closure(store, paths, lambda _, found: found.input.needed)


def _closure(
    store: Store, paths: Sequence[str], wanted: Callable[[Artifact, FoundInput], bool]
) -> list[str]:
    if not paths:
        return []
    lineage = Lineage.of(store)
    chosen = [choose_artifact(store, lineage.artifacts, path) for path in paths]
    return [artifact.path for artifact in lineage.from_inputs(chosen, wanted)]


def _missing(store: Store, needed: Input, path: str) -> NotFoundError:
    name = f" {needed.name!r}" if needed.name else ""
    return NotFoundError(
        f"{path} was made from a {kind_named(needed.kind).title}{name} with the digest "
        f"{needed.digest[:16]}…, which is not in {store.location} any more. Share it without its "
        "inputs."
    )
