"""The artifacts of a store as sharing sees them: by path, and with the files of each."""

from __future__ import annotations

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE, ArtifactFiles, read_document
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import split_path


def folder_of(store: Store, path: str) -> Location:
    """The folder that the file paths of the artifact `kind/name` are relative to.

    Raises:
        InvalidInputError: not of that form, or a name that cannot be.
    """
    kind, name = split_path(path)
    return kind.location(store, name)


def paths_in(store: Store) -> dict[str, bool]:
    """Every artifact of the store by `kind/name`, and whether it is complete.

    Raises:
        NotFoundError: there is no store.
    """
    return {artifact.path: artifact.complete for artifact in list_artifacts(store)}


def read_artifact(store: Store, path: str) -> ArtifactFiles:
    """The files of the complete artifact `kind/name`.

    Raises:
        InvalidInputError: no such kind, or a manifest that names files outside its folder.
        NotFoundError: no such artifact, or one that is not complete.
        CorruptionError: its manifest or a receipt is missing or damaged.
        FormatVersionError: written by a newer version of the format.
    """
    kind, name = split_path(path)
    location = kind.location(store, name)
    try:
        manifest = read_document(location, MANIFEST_FILE, kind.identity)
    except NotFoundError as error:
        find_artifact(store, path)
        raise NotFoundError(
            f"{path} in {store.location} is not complete; only complete artifacts are shared. "
            "Finish it first: the command that began it goes on where it stopped."
        ) from error
    try:
        return kind.files(location, path, manifest)
    except NotFoundError as error:
        raise CorruptionError(f"{error} Run `fusestore verify {path}` there.") from error
