"""The inputs of artifacts, found in their store by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

from fusestore.errors import NotFoundError
from fusestore.store.artifact_types import Input
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import Artifact, split_path


def with_inputs(store: Store, paths: Sequence[str]) -> list[str]:
    """The artifacts and all their direct and indirect inputs, inputs first, each once.

    Raises:
        NotFoundError: the store does not have an input any more.
    """
    return _Inputs(store).closure(paths, _Inputs.all_of)


def with_needed(store: Store, paths: Sequence[str]) -> list[str]:
    """The artifacts, each after the inputs that reading it needs, if the store has them."""
    return _Inputs(store).closure(paths, _Inputs.needed_by)


class _Inputs:
    """The inputs of a store's artifacts, from manifests that are read once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def closure(
        self, paths: Sequence[str], inputs: Callable[[_Inputs, str], Iterator[str]]
    ) -> list[str]:
        """The paths and, recursively, the `inputs` of each; inputs first."""
        visited: dict[str, None] = {}

        def visit(path: str) -> None:
            if path not in visited:
                for needed in inputs(self, path):
                    visit(needed)
                visited[path] = None

        for path in paths:
            visit(path)
        return list(visited)

    def needed_by(self, path: str) -> Iterator[str]:
        """Paths of the direct inputs that reading an artifact needs."""
        for needed in self._inputs_of(path):
            if needed.needed and (needed.kind, needed.digest) in self._by_digest:
                yield self._by_digest[needed.kind, needed.digest]

    def all_of(self, path: str) -> Iterator[str]:
        """Paths of an artifact's direct inputs."""
        for needed in self._inputs_of(path):
            try:
                yield self._by_digest[needed.kind, needed.digest]
            except KeyError:
                raise self._missing(needed, path) from None

    def _inputs_of(self, path: str) -> Iterator[Input]:
        artifact = self._artifacts.get(path)
        if artifact is not None and artifact.manifest is not None:
            yield from artifact.kind.inputs(artifact.manifest)

    @cached_property
    def _artifacts(self) -> dict[str, Artifact]:
        return {artifact.path: artifact for artifact in list_artifacts(self._store)}

    @cached_property
    def _by_digest(self) -> dict[tuple[str, str], str]:
        """Path of each complete artifact by its kind and digest."""
        return {
            (artifact.kind.name, artifact.kind.digest(artifact.manifest)): path
            for path, artifact in self._artifacts.items()
            if artifact.manifest is not None
        }

    def _missing(self, needed: Input, path: str) -> NotFoundError:
        title = split_path(f"{needed.kind}/{needed.name or 'unknown'}")[0].title
        name = f" {needed.name!r}" if needed.name else ""
        return NotFoundError(
            f"{path} was made from a {title}{name} with the digest {needed.digest[:16]}…, which "
            f"is not in {self._store.location} any more. Share it without its inputs."
        )
