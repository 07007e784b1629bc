"""Problems of an artifact, and the checks that several kinds share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from fusestore.errors import (
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.manifest import Manifest
from fusestore.store.receipts import FileRecord

M = TypeVar("M", bound=Manifest)

DAMAGE = (CorruptionError, FormatVersionError, InvalidInputError, NotFoundError)
"""Errors of reading damaged files. A failure of the storage is not damage."""


@dataclass(frozen=True)
class Finding:
    """One problem of an artifact.

    Attributes:
        file: the file, relative to the artifact's folder.
        problem: a phrase such as "is missing", which follows the file's name.
        part: of a cache, the part to make again; empty if the damage is in no part.
    """

    file: str
    problem: str
    part: str = ""


def load_or_report(
    document: type[M], folder: Location, file: str, findings: list[Finding], part: str = ""
) -> M | None:
    """The document in a file of the folder; None, and a new finding, if it cannot be used."""
    try:
        return document.load(folder / file)
    except NotFoundError:
        findings.append(Finding(file, "is missing", part))
    except (CorruptionError, InvalidInputError, FormatVersionError) as error:
        # A newer format is not damage, but a flipped digit of the version looks like one.
        findings.append(Finding(file, f"cannot be read: {error}", part))
    return None


def file_digest(file: Location, num_bytes: int) -> str:
    """SHA-256 of a file's first bytes, hexadecimal; memory does not grow with its size."""
    state = hashlib.sha256()
    for start in range(0, num_bytes, _CHUNK_BYTES):
        chunk = file.read_range(start, min(start + _CHUNK_BYTES, num_bytes))
        if not chunk:
            break
        state.update(chunk)
    return state.hexdigest()


_CHUNK_BYTES = 16 * 2**20


def check_files(
    folder: Location, files: Mapping[str, FileRecord], *, quick: bool
) -> Iterator[Finding]:
    """Problems of files: only their sizes are compared if `quick`, else every byte."""
    sizes = folder.sizes()
    for name, record in files.items():
        if name not in sizes:
            yield Finding(name, "is missing")
        elif (folder / name).leads_out:
            yield Finding(name, "is a symbolic link that leads out of the store")
        elif sizes[name] != record.num_bytes:
            yield Finding(name, f"has {sizes[name]:,} bytes, {record.num_bytes:,} were written")
        elif not quick:
            actual = file_digest(folder / name, record.num_bytes)
            if actual != record.sha256:
                yield Finding(
                    name, f"has SHA-256 {actual[:16]}…, {record.sha256[:16]}… was written"
                )
