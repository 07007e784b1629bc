"""The artifacts of a store, as `fusestore ls` prints them."""

from __future__ import annotations

from fusestore.store.inventory import describe, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.store.shown_table import ShownTable


class ListedArtifact(Frozen):
    """One artifact of a store.

    Attributes:
        artifact: `kind/name`.
        state: complete, unfinished or damaged.
        complete: whether the state is complete.
        description: one line on what it is, or on how to finish or repair it.
    """

    artifact: str
    state: str
    complete: bool
    description: str


class Listing(Frozen):
    """The artifacts of a store; what `fusestore ls --json` prints.

    Attributes:
        store: its address.
        artifacts: each kind after the kinds it is made from, then by name.
    """

    store: str
    artifacts: tuple[ListedArtifact, ...]

    def table(self) -> ShownTable:
        """The artifacts for people, a line each."""
        rows = [[each.artifact, each.state, each.description] for each in self.artifacts]
        return ShownTable(self.store, ["artifact", "state", "description"], rows)


def store_listing(store: Store) -> Listing:
    """What a store holds; only manifests are read.

    Raises:
        NotFoundError: there is no store.
    """
    return Listing(
        store=str(store.location),
        artifacts=tuple(
            ListedArtifact(
                artifact=artifact.path,
                state=artifact.state,
                complete=artifact.state == "complete",
                description=describe(artifact),
            )
            for artifact in list_artifacts(store)
        ),
    )
