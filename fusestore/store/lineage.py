"""What the artifacts of a store were made from, and what is made from them; found by digest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from fusestore.store.artifact_types import Input
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import Artifact


@dataclass(frozen=True)
class FoundInput:
    """An input of an artifact.

    Attributes:
        input: what the manifest says of it.
        artifact: the artifact of this digest; None if the store does not hold it any more.
    """

    input: Input
    artifact: Artifact | None


class Lineage:
    """Inputs and users of artifacts.

    An artifact whose manifest is damaged has no digest, so it counts as missing.

    Attributes:
        artifacts: all of a store, each kind after the kinds it is made from.
    """

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self.artifacts = artifacts
        self._by_digest: dict[tuple[str, str], list[Artifact]] = {}
        for artifact in artifacts:
            if artifact.digest is not None:
                key = (artifact.kind.name, artifact.digest)
                self._by_digest.setdefault(key, []).append(artifact)
        self._inputs = {artifact.path: self._found(artifact.inputs) for artifact in artifacts}
        self._users: dict[str, dict[str, Artifact]] = {}
        for artifact in artifacts:
            for found in self._inputs[artifact.path]:
                if found.artifact is not None:
                    users = self._users.setdefault(found.artifact.path, {})
                    users[artifact.path] = artifact

    @classmethod
    def of(cls, store: Store) -> Lineage:
        """That of all artifacts of a store; only manifests are read.

        Raises:
            NotFoundError: there is no store.
        """
        return cls(list_artifacts(store))

    def inputs(self, artifact: Artifact) -> tuple[FoundInput, ...]:
        """The artifacts that it was made from directly, each once."""
        return self._inputs[artifact.path]

    def used_by(self, artifact: Artifact) -> list[Artifact]:
        """The artifacts that were made from it directly."""
        return list(self._users.get(artifact.path, {}).values())

    def from_inputs(
        self, artifacts: Iterable[Artifact], wanted: Callable[[Artifact, FoundInput], bool]
    ) -> list[Artifact]:
        """The artifacts and, recursively, those of their inputs that are wanted; inputs first.

        Args:
            artifacts: some of the store's.
            wanted: chooses among the inputs of an artifact, also those that are missing.
        """
        visited: dict[str, Artifact] = {}
        seen: set[str] = set()

        # A list in place of calls: manifests of strangers may make chains of any length.
        waiting = [(artifact, False) for artifact in reversed(list(artifacts))]
        while waiting:
            artifact, inputs_done = waiting.pop()
            if inputs_done:
                visited[artifact.path] = artifact
            # Manifests of strangers may name each other.
            elif artifact.path not in seen:
                seen.add(artifact.path)
                waiting.append((artifact, True))
                inputs = [
                    found.artifact
                    for found in self.inputs(artifact)
                    if wanted(artifact, found) and found.artifact is not None
                ]
                waiting += [(each, False) for each in reversed(inputs)]
        return list(visited.values())

    def broken_without(self, removed: Collection[str]) -> list[Artifact]:
        """The other artifacts that lose an input, directly or not, if some are removed.

        An input of which the store holds another copy is not lost.

        Args:
            removed: `kind/name` of each artifact that is removed.

        Returns:
            In the order of the list.
        """
        gone = set(removed)
        while True:
            kept = [artifact for artifact in self.artifacts if artifact.path not in gone]
            left = Lineage(kept)
            broken = {
                artifact.path
                for artifact in kept
                if _num_found(left.inputs(artifact)) < _num_found(self.inputs(artifact))
            }
            if not broken:
                break
            gone |= broken
        lost = gone.difference(removed)
        return [artifact for artifact in self.artifacts if artifact.path in lost]

    def _found(self, inputs: Iterable[Input]) -> tuple[FoundInput, ...]:
        distinct = {(each.kind, each.digest): each for each in inputs}
        return tuple(FoundInput(each, self._find(each)) for each in distinct.values())

    def _find(self, wanted: Input) -> Artifact | None:
        found = self._by_digest.get((wanted.kind, wanted.digest), ())
        return next((each for each in found if each.name == wanted.name), next(iter(found), None))


def _num_found(inputs: Iterable[FoundInput]) -> int:
    return sum(found.artifact is not None for found in inputs)
