"""The files of an artifact, in the order in which a copy must write them.

The fingerprint reserves the name before any data; groups of files follow, each sealed by its
receipt; the manifest completes the artifact. This module reads only JSON documents, and trusts none
of the paths in them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fusestore.errors import InvalidInputError
from fusestore.storage.foreign_names import listed_inside
from fusestore.storage.location import Location
from fusestore.store.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_json,
    digest_bytes,
    manifest_content,
)
from fusestore.store.receipts import FileRecord

MANIFEST_FILE = "manifest.json"
FINGERPRINT_FILE = "fingerprint.json"

_REQUESTS = 16
"""Documents that are read at the same time."""

Identity = Callable[[str, Mapping[str, Any]], str | None]
"""The identity of a document, from its path and content; None means its digest."""


@dataclass(frozen=True)
class Document:
    """A JSON document of an artifact, written create-only.

    Attributes:
        path: relative to the artifact's folder.
        data: its bytes.
        identity: identifies its meaning. Two documents of one identity may differ in bytes if
            another version of Polars encoded a table.
    """

    path: str
    data: bytes
    identity: str


@dataclass(frozen=True)
class FileGroup:
    """Files that are whole when `receipt` exists; without a receipt, when the manifest exists."""

    files: Mapping[str, FileRecord]
    receipt: Document | None = None


@dataclass(frozen=True)
class ArtifactFiles:
    """All files of a complete artifact.

    Attributes:
        path: `kind/name`.
        location: the folder that file paths are relative to.
        fingerprint: the document written before all others.
        groups: the files between, in order.
        manifest: the document written last.
        sizes: size in bytes of every file in the folder now, by path.
    """

    path: str
    location: Location
    fingerprint: Document | None
    groups: tuple[FileGroup, ...]
    manifest: Document
    sizes: Mapping[str, int] = field(repr=False)

    def __post_init__(self) -> None:
        """Check that all files and documents together are paths inside the folder."""
        documents = [self.fingerprint, self.manifest, *(group.receipt for group in self.groups)]
        paths = {document.path for document in documents if document is not None}
        paths.update(*(group.files for group in self.groups))
        listed_inside(self.location, paths)


def read_document(folder: Location, path: str, identity: Identity) -> Document:
    """Read a document of an artifact and check its own checksum.

    Raises:
        NotFoundError: no such file.
        CorruptionError, FormatVersionError, InvalidInputError: see `Manifest.load`.
    """
    listed_inside(folder, [path])
    file = folder / path
    data = file.read_prefix(MAX_MANIFEST_BYTES + 1)
    content = manifest_content(data, str(file))
    try:
        identifier = identity(path, content)
    except (KeyError, TypeError) as error:
        raise InvalidInputError(f"{file} is not the document it should be: {error!r}.") from error
    return Document(path, data, identifier or digest_bytes(canonical_json(content)))


def read_documents(folder: Location, paths: Sequence[str], identity: Identity) -> list[Document]:
    """Read several documents at the same time; see `read_document`."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(lambda path: read_document(folder, path, identity), paths))


def file_group(
    folder: Location, files: Mapping[str, FileRecord], receipt: Document | None = None
) -> FileGroup:
    """A group of files of the folder.

    Raises:
        InvalidInputError: a path leads outside the folder.
    """
    listed_inside(folder, files)
    return FileGroup(files, receipt)
