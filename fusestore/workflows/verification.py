"""Checking the artifacts of a store against the checksums in their manifests."""

from __future__ import annotations

from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.findings import DAMAGE, Finding
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import Artifact


def verify_store(
    store: Store, path: str | None = None, *, quick: bool = False
) -> dict[str, list[Finding]]:
    """Check one artifact, or all artifacts of a store.

    Args:
        store: the store.
        path: `kind/name`; None checks everything.
        quick: check only sizes, receipts and manifests, without reading data.

    Returns:
        The damage, by `kind/name`; an empty list for a sound artifact.

    Raises:
        NotFoundError: no such store or artifact.
    """
    artifacts = list_artifacts(store) if path is None else [find_artifact(store, path)]
    return {artifact.path: check_artifact(store, artifact, quick=quick) for artifact in artifacts}


def check_artifact(store: Store, artifact: Artifact, *, quick: bool = False) -> list[Finding]:
    """The damage of an artifact."""
    try:
        return list(artifact.kind.check(store, artifact, quick=quick))
    except DAMAGE as error:
        return [Finding(MANIFEST_FILE, str(error))]
