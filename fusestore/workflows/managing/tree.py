"""The lineage of a store's artifacts: what was made from what, and what is used by what."""

from __future__ import annotations

from collections.abc import Iterator

from fusestore.store.details import InputState
from fusestore.store.inventory import choose_artifact
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact


class TreeEntry(Frozen):
    """One artifact in a lineage.

    Attributes:
        artifact: `kind/name`.
        state: complete, unfinished or damaged.
        below: `kind/name` of the input below which a tree shows it; null at the top.
        depth: number of artifacts above it in the tree.
        inputs: what it was made from directly.
        used_by: `kind/name` of the artifacts that were made from it directly.
    """

    artifact: str
    state: str
    below: str | None
    depth: int
    inputs: tuple[InputState, ...]
    used_by: tuple[str, ...]


class Tree(Frozen):
    """The lineage of a store; what `fusestore tree --json` prints.

    Attributes:
        store: its address.
        artifacts: in the order of a tree: each below one of its inputs.
    """

    store: str
    artifacts: tuple[TreeEntry, ...]


def store_tree(store: Store, artifact: str | None = None) -> Tree:
    """The lineage of all artifacts, or of one: what it was made from and what is made from it.

    An artifact has several inputs. It stands below the last of them, in the order in which
    artifacts are made, that people named: an alignment below its cache, not its corpus.

    Args:
        store: the store.
        artifact: `kind/name`, or the name alone if only one artifact has it; None for all.

    Raises:
        NotFoundError: no such store or artifact.
        InvalidInputError: several artifacts have the name.
    """
    lineage = Lineage.of(store)
    shown = {each.path for each in lineage.artifacts}
    if artifact is not None:
        chosen = choose_artifact(store, lineage.artifacts, artifact)
        shown = {each.path for each in lineage.from_inputs([chosen], lambda _, __: True)}
        shown |= {each.path for each in _users(lineage, chosen)}
    below = {
        each.path: _parent(lineage, each, shown) for each in lineage.artifacts if each.path in shown
    }
    children: dict[str | None, list[Artifact]] = {}
    for each in lineage.artifacts:
        if each.path in below:
            children.setdefault(below[each.path], []).append(each)

    def entries(parent: str | None, depth: int) -> Iterator[TreeEntry]:
        for each in children.get(parent, ()):
            yield TreeEntry(
                artifact=each.path,
                state=each.state,
                below=parent,
                depth=depth,
                inputs=tuple(InputState.of(found) for found in lineage.inputs(each)),
                used_by=tuple(user.path for user in lineage.used_by(each)),
            )
            yield from entries(each.path, depth + 1)

    return Tree(store=str(store.location), artifacts=tuple(entries(None, 0)))


def _users(lineage: Lineage, artifact: Artifact) -> list[Artifact]:
    """Everything that was made from an artifact, directly or not."""
    found: dict[str, Artifact] = {}
    waiting = [artifact]
    while waiting:
        for user in lineage.used_by(waiting.pop()):
            if user.path not in found:
                found[user.path] = user
                waiting.append(user)
    return list(found.values())


def _parent(lineage: Lineage, artifact: Artifact, shown: set[str]) -> str | None:
    order = {each.path: number for number, each in enumerate(lineage.artifacts)}
    inputs = [
        found.artifact
        for found in lineage.inputs(artifact)
        if found.artifact is not None
        and found.artifact.path in shown
        # Manifests of strangers may name each other.
        and order[found.artifact.path] < order[artifact.path]
    ]
    if not inputs:
        return None
    return max(inputs, key=lambda each: (not each.kind.made_on_demand, order[each.path])).path
