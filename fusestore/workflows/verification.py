"""Checking the artifacts of a store against the checksums in their manifests."""

from __future__ import annotations

from fusestore.process_rank import Rank
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.details import InputState
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.inventory import choose_artifact
from fusestore.store.layout import Store
from fusestore.store.lineage import Lineage
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact

WHOLE = Rank(0, 1)
"""The share of a process that checks everything."""


class VerifiedFinding(Frozen):
    """One problem of an artifact.

    Attributes:
        file: the file, relative to the artifact's folder.
        problem: a phrase that follows the file's name.
        part: of a cache, the part to make again; empty if the damage is in no part.
        remedy: the command that repairs it, or what else to do.
    """

    file: str
    problem: str
    part: str
    remedy: str


class VerifiedArtifact(Frozen):
    """The state of one artifact.

    Attributes:
        artifact: `kind/name`.
        sound: whether it can be used: without findings, and with every input that it needs. An
            unfinished artifact needs all of its inputs.
        findings: what is damaged.
        missing_inputs: what it was made from that the store does not hold any more. Without it a
            complete artifact can be used, but not repaired.
    """

    artifact: str
    sound: bool
    findings: tuple[VerifiedFinding, ...]
    missing_inputs: tuple[InputState, ...]


class Verification(Frozen):
    """The state of a store; what `fusestore verify --json` prints.

    Attributes:
        store: its address.
        quick: whether only sizes, receipts and manifests were checked.
        artifacts: the artifacts that were checked.
    """

    store: str
    quick: bool
    artifacts: tuple[VerifiedArtifact, ...]


def verify_inputs_too(
    store: Store, path: str | None = None, *, quick: bool = False, share: Rank = WHOLE
) -> Verification:
    """Check one artifact or all artifacts of a store, and whether their inputs are there.

    Arguments and errors as for `verify_store`. With a `share`, only every `world_size`-th artifact
    is checked, from number `rank` on: several processes check a store together.
    """
    lineage = Lineage.of(store)
    chosen = _chosen(store, lineage, path)[share.rank :: share.world_size]
    return Verification(
        store=str(store.location),
        quick=quick,
        artifacts=tuple(_verified(store, lineage, artifact, quick) for artifact in chosen),
    )


def verify_store(
    store: Store, path: str | None = None, *, quick: bool = False
) -> dict[str, list[Finding]]:
    """Check one artifact, or all artifacts of a store.

    Args:
        store: the store.
        path: `kind/name`, or the name alone if only one artifact has it; None checks everything.
        quick: check only sizes, receipts and manifests, without reading data.

    Returns:
        The damage, by `kind/name`; an empty list for a sound artifact.

    Raises:
        NotFoundError: no such store or artifact.
    """
    return {
        artifact.path: check_artifact(store, artifact, quick=quick)
        for artifact in _chosen(store, Lineage.of(store), path)
    }


def check_artifact(store: Store, artifact: Artifact, *, quick: bool = False) -> list[Finding]:
    """The damage of an artifact."""
    try:
        return list(artifact.kind.check(store, artifact, quick=quick))
    except DAMAGE as error:
        return [Finding(MANIFEST_FILE, str(error))]
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        # What is in a store may be anything, and one artifact must not hide the others.
        return [Finding(MANIFEST_FILE, f"stands for what cannot be read: {error!r}"[:500])]


def _chosen(store: Store, lineage: Lineage, path: str | None) -> list[Artifact]:
    if path is None:
        return list(lineage.artifacts)
    return [choose_artifact(store, lineage.artifacts, path)]


def _verified(store: Store, lineage: Lineage, artifact: Artifact, quick: bool) -> VerifiedArtifact:
    findings = check_artifact(store, artifact, quick=quick)
    missing = [found for found in lineage.inputs(artifact) if found.artifact is None]
    lacking = any(found.input.needed or not artifact.complete for found in missing)
    return VerifiedArtifact(
        artifact=artifact.path,
        sound=not findings and not lacking,
        findings=tuple(
            VerifiedFinding(
                file=finding.file,
                problem=finding.problem,
                part=finding.part,
                remedy=artifact.kind.remedy(store, artifact.name, finding),
            )
            for finding in findings
        ),
        missing_inputs=tuple(map(InputState.of, missing)),
    )
