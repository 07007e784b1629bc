"""What is wrong with an artifact, and the checks that several kinds share."""

from __future__ import annotations

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
from fusestore.store.manifest import Manifest, digest_bytes
from fusestore.store.receipts import FileRecord

M = TypeVar("M", bound=Manifest)

DAMAGE = (CorruptionError, FormatVersionError, InvalidInputError, NotFoundError)
"""What reading something damaged raises. A failure of the storage says nothing about the data."""


@dataclass(frozen=True)
class Finding:
    """One problem of an artifact.

    Attributes:
        file: the file, relative to the artifact's folder.
        problem: what is wrong with it.
        part: of a cache, the part to make again; empty where the damage is in no part.
    """

    file: str
    problem: str
    part: str = ""


def load_or_report(
    document: type[M], folder: Location, file: str, findings: list[Finding], part: str = ""
) -> M | None:
    """The document in a file of the folder; None, with what is wrong added to the findings."""
    try:
        return document.load(folder / file)
    except NotFoundError:
        findings.append(Finding(file, "is missing", part))
    except (CorruptionError, InvalidInputError, FormatVersionError) as error:
        # A newer format is not damage, but a flipped digit of the version looks like one.
        findings.append(Finding(file, f"cannot be read: {error}", part))
    return None


def check_files(
    folder: Location, files: Mapping[str, FileRecord], *, quick: bool
) -> Iterator[Finding]:
    """What is wrong with files: only their sizes are compared if `quick`, else every byte."""
    sizes = folder.sizes()
    for name, record in files.items():
        if name not in sizes:
            yield Finding(name, "is missing")
        elif sizes[name] != record.num_bytes:
            yield Finding(name, f"has {sizes[name]:,} bytes, {record.num_bytes:,} were written")
        elif not quick:
            found = digest_bytes((folder / name).read_bytes())
            if found != record.sha256:
                yield Finding(name, f"has SHA-256 {found[:16]}…, {record.sha256[:16]}… was written")
