"""Giving an artifact another name.

Manifests name other artifacts by digest, so what was made from a renamed artifact stays as it is.
In a folder of this machine a rename is one step. On other storage the artifact is copied, with
every check of a copy between stores and its manifest last, and then the old one is removed, its
manifest first: at every moment one of the two is complete.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from fusestore.errors import AlreadyExistsError, CorruptionError, InvalidInputError
from fusestore.progress import ProgressCounter, Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, sync_folder, temporary_owner
from fusestore.storage.retries import storage_errors
from fusestore.store.artifact_files import ArtifactFiles
from fusestore.store.copy import FILES_AT_ONCE
from fusestore.store.details import check_undamaged
from fusestore.store.fingerprints import check_case
from fusestore.store.inventory import find_artifact
from fusestore.store.layout import Store, check_name
from fusestore.store.leases import LEASE_FOLDER, live_writers
from fusestore.store.manifest import Frozen
from fusestore.store.registry import Artifact
from fusestore.workflows.managing.removal import remove_folder
from fusestore.workflows.sharing.artifacts import read_artifact
from fusestore.workflows.sharing.plan import plan_copy
from fusestore.workflows.sharing.run import carry_out


class Renaming(Frozen):
    """A rename; what `fusestore mv --json` prints.

    Attributes:
        store: its address.
        artifact: `kind/name` before.
        renamed: `kind/name` now.
        num_bytes: bytes that were copied for it; 0 in a folder of this machine.
    """

    store: str
    artifact: str
    renamed: str
    num_bytes: int


def rename_artifact(
    store: Store, artifact: str, name: str, reporter: Reporter | None = None
) -> Renaming:
    """Give an artifact another name.

    Args:
        store: the store.
        artifact: `kind/name`, or the name alone if only one artifact has it.
        name: the new name, alone or after the same kind.
        reporter: receives the progress of a copy.

    Raises:
        NotFoundError: no such store or artifact.
        AlreadyExistsError: there is an artifact of the new name. Nothing was changed.
        InvalidInputError: an impossible name, a kind whose names say what an artifact is, a
            process that writes it, or an unfinished artifact on remote storage.
        CorruptionError: it is damaged. The old artifact is as it was.
        AccessDeniedError, StorageError: the storage failed; the same call continues.
    """
    found = find_artifact(store, artifact)
    new = _new_name(found, name)
    check_undamaged(found)
    files = found.location.listed()
    writers = live_writers(found.location, files)
    if writers:
        raise InvalidInputError(
            f"{found.path} is being written by {' and '.join(writers)}. Nothing was changed; stop "
            "the writer first, or wait until it is done."
        )
    target = found.kind.location(store, new)
    path = f"{found.kind.name}/{new}"
    if (target / "manifest.json").exists() or (target.is_local and target.exists()):
        raise AlreadyExistsError(
            f"{store.location} has {path} already. Nothing was changed; choose another name, or "
            f"remove it with `fusestore rm {path}`."
        )
    if target.is_local:
        if new.lower() != found.name.lower():
            check_case(target)
        with storage_errors(target):
            found.location.path.rename(target.path)
        # It has another name now. If the disk cannot make that durable, either name is right.
        with contextlib.suppress(OSError):
            sync_folder(target.path.parent)
        num_bytes = 0
    else:
        num_bytes = _copy(store, found, target, reporter or SilentReporter())
        remove_folder(found.location, files)
    return Renaming(
        store=str(store.location), artifact=found.path, renamed=path, num_bytes=num_bytes
    )


def _new_name(artifact: Artifact, name: str) -> str:
    kind, separator, bare = name.rpartition("/")
    if separator and kind != artifact.kind.name:
        raise InvalidInputError(
            f"{artifact.path} stays a {artifact.kind.title}: give a name, or "
            f"{artifact.kind.name}/NAME, not {name!r}."
        )
    if not artifact.kind.named_by_user:
        raise InvalidInputError(
            f"{artifact.path} cannot be renamed: the name of a {artifact.kind.title} says what it "
            "is, and stages find it by that name."
        )
    if bare == artifact.name:
        raise InvalidInputError(f"{artifact.path} has this name already.")
    return check_name(bare)


def _copy(store: Store, artifact: Artifact, target: Location, reporter: Reporter) -> int:
    """Copy a complete artifact to another folder of its storage; returns the bytes copied."""
    if not artifact.complete:
        raise InvalidInputError(
            f"{artifact.path} is unfinished, and {store.location} cannot rename a folder in one "
            "step. Finish it first, or remove it and make it again."
        )
    content = read_artifact(store, artifact.path)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        plan = plan_copy(content, target, pool, check=True)
        with reporter.stage(f"Copying {artifact.path}", "bytes") as progress:
            progress(0, plan.num_bytes)
            for path in _unlisted(content):
                publish(target / path, (artifact.location / path).read_bytes())
            problems = carry_out(plan, pool, ProgressCounter(plan.num_bytes, progress))
    if problems:
        target.delete()
        raise CorruptionError(
            f"{artifact.path} is damaged and was not renamed: {problems[0]} Repair it first with "
            f"`fusestore verify {artifact.path} --repair`."
        )
    return plan.num_bytes


def _unlisted(content: ArtifactFiles) -> list[str]:
    """Files in the folder that no manifest lists, such as a note of a person."""
    documents = [
        content.manifest,
        content.fingerprint,
        *(group.receipt for group in content.groups),
    ]
    listed = {document.path for document in documents if document is not None}
    listed |= {path for group in content.groups for path in group.files}
    return [
        path
        for path in content.sizes
        if path not in listed
        and not path.startswith(f"{LEASE_FOLDER}/")
        and temporary_owner(path.rpartition("/")[2]) is None
    ]
