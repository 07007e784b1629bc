"""What artifacts were made from, found again in their store by digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from fusestore.errors import NotFoundError
from fusestore.store.artifact_types import Input
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import Artifact, split_path


def with_inputs(store: Store, paths: list[str]) -> list[str]:
    """The artifacts and all they were made from, inputs first, each once.

    Raises:
        NotFoundError: something an artifact was made from is not in its store any more.
    """
    return _Inputs(store).closure(paths, _Inputs.all_of)


def with_needed(store: Store, paths: list[str]) -> list[str]:
    """The artifacts, each after what it cannot be read without, if the store has that."""
    return _Inputs(store).closure(paths, _Inputs.needed_by)


class _Inputs:
    """One look at a store's manifests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def closure(
        self, paths: list[str], inputs: Callable[[_Inputs, str], Iterator[str]]
    ) -> list[str]:
        """The paths and what `inputs` gives for them, and so on; inputs first."""
        found: dict[str, None] = {}

        def visit(path: str) -> None:
            if path not in found:
                for needed in inputs(self, path):
                    visit(needed)
                found[path] = None

        for path in paths:
            visit(path)
        return list(found)

    def needed_by(self, path: str) -> Iterator[str]:
        """Paths of what an artifact cannot be read without."""
        for wanted in self._inputs_of(path):
            if wanted.needed and (wanted.kind, wanted.digest) in self._by_digest:
                yield self._by_digest[wanted.kind, wanted.digest]

    def all_of(self, path: str) -> Iterator[str]:
        """Paths of what an artifact was directly made from."""
        for wanted in self._inputs_of(path):
            try:
                yield self._by_digest[wanted.kind, wanted.digest]
            except KeyError:
                raise self._gone(wanted, path) from None

    def _inputs_of(self, path: str) -> Iterator[Input]:
        artifact = self._artifacts.get(path)
        if artifact is not None and artifact.manifest is not None:
            yield from artifact.kind.inputs(artifact.manifest)

    @cached_property
    def _artifacts(self) -> dict[str, Artifact]:
        return {artifact.path: artifact for artifact in list_artifacts(self._store)}

    @cached_property
    def _by_digest(self) -> dict[tuple[str, str], str]:
        """Path of each complete artifact by its kind and what other manifests call it by."""
        return {
            (artifact.kind.name, artifact.kind.digest(artifact.manifest)): path
            for path, artifact in self._artifacts.items()
            if artifact.manifest is not None
        }

    def _gone(self, wanted: Input, path: str) -> NotFoundError:
        title = split_path(f"{wanted.kind}/{wanted.name or 'unknown'}")[0].title
        called = f" {wanted.name!r}" if wanted.name else ""
        return NotFoundError(
            f"{path} was made from a {title}{called} with the digest {wanted.digest[:16]}…, which "
            f"is not in {self._store.location} any more. Share it without its inputs."
        )
