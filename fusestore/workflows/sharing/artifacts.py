"""The artifacts of a store by path, and their files, for sharing."""

from __future__ import annotations

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE, ArtifactFiles, Document, read_document
from fusestore.store.inventory import find_artifact, list_artifacts
from fusestore.store.layout import Store
from fusestore.store.registry import split_path


def folder_of(store: Store, path: str) -> Location:
    """The folder that the file paths of the artifact `kind/name` are relative to.

    Raises:
        InvalidInputError: the path has another form, or an invalid name.
    """
    kind, name = split_path(path)
    return kind.location(store, name)


def paths_in(store: Store) -> dict[str, bool]:
    """Whether each artifact of the store is complete, by `kind/name`.

    Raises:
        NotFoundError: the store does not exist.
    """
    return {artifact.path: artifact.complete for artifact in list_artifacts(store)}


def read_artifact(store: Store, path: str) -> ArtifactFiles:
    """The files of the complete artifact `kind/name`.

    Raises:
        InvalidInputError: no such kind, or a manifest that names files outside its folder.
        NotFoundError: the artifact does not exist or is not complete.
        CorruptionError: its manifest or a receipt is missing or damaged.
        FormatVersionError: written by a newer version of the format.
    """
    kind, name = split_path(path)
    location = kind.location(store, name)
    manifest = read_manifest(store, path)
    try:
        return kind.files(location, path, manifest)
    except NotFoundError as error:
        raise CorruptionError(
            f"{error} Run `fusestore verify {path}` on {store.location}."
        ) from error


def read_manifest(store: Store, path: str) -> Document:
    """The manifest of the complete artifact `kind/name`; errors as for `read_artifact`."""
    kind, name = split_path(path)
    try:
        return read_document(kind.location(store, name), MANIFEST_FILE, kind.identity)
    except NotFoundError as error:
        find_artifact(store, path)
        raise NotFoundError(
            f"{path} in {store.location} is not complete; only complete artifacts are shared. "
            "Finish it first: run the command that makes it again, which resumes it."
        ) from error
