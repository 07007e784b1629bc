"""Comparing an artifact with what lies under its name elsewhere: what is missing, what contradicts.

Nothing is written here. A file is taken for copied when it has the right size and the document
that vouches for it (its receipt, or the manifest) is there too; any other file that lies there is
read and compared, because something else may have left it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.store.artifact_files import ArtifactFiles, Document, FileGroup, read_document
from fusestore.store.copy import matches
from fusestore.store.receipts import FileRecord
from fusestore.store.registry import split_path


@dataclass(frozen=True)
class GroupCopy:
    """What is missing of one group: files, and the receipt if it is not there."""

    files: Mapping[str, FileRecord]
    receipt: Document | None


@dataclass(frozen=True)
class Plan:
    """What is missing of one artifact at the target.

    Attributes:
        artifact: the artifact as its own store has it.
        target: the folder it goes to.
        fingerprint: the document to write first, if it is not there.
        groups: those with anything missing.
        manifest: the document to write last, if it is not there.
    """

    artifact: ArtifactFiles
    target: Location
    fingerprint: Document | None
    groups: tuple[GroupCopy, ...]
    manifest: Document | None

    @property
    def is_empty(self) -> bool:
        """Whether the target has everything."""
        return not (self.fingerprint or self.groups or self.manifest)

    @property
    def files(self) -> dict[str, FileRecord]:
        """All data files to copy."""
        return {path: record for group in self.groups for path, record in group.files.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of data to copy."""
        return sum(record.num_bytes for record in self.files.values())


def plan_copy(artifact: ArtifactFiles, target: Location, pool: Executor, *, check: bool) -> Plan:
    """Compare.

    Args:
        artifact: what is to be copied.
        target: the folder it goes to, there or not.
        pool: runs the reading of files that must be compared.
        check: read every file that is there, also those a receipt vouches for.

    Raises:
        AlreadyExistsError: something else has this name at the target.
    """
    return _Comparison(artifact, target, pool, check).plan()


class _Comparison:
    def __init__(
        self, artifact: ArtifactFiles, target: Location, pool: Executor, check: bool
    ) -> None:
        self.artifact, self.target, self.pool, self.check = artifact, target, pool, check
        self.identity = split_path(artifact.path)[0].identity
        self.sizes = target.sizes()

    def plan(self) -> Plan:
        artifact = self.artifact
        fingerprint = artifact.fingerprint
        begun = fingerprint is not None and self._found(fingerprint) is not None
        found = self._found(artifact.manifest)
        if found is not None and found.data != artifact.manifest.data:
            # The same content in other bytes: a complete artifact of its own, and left alone.
            return Plan(artifact, self.target, None, (), None)
        groups = tuple(self._groups(begun or found is not None, found is not None))
        return Plan(
            artifact,
            self.target,
            None if begun else fingerprint,
            tuple(group for group in groups if group.files or group.receipt),
            None if found is not None else artifact.manifest,
        )

    def _groups(self, same: bool, complete: bool) -> Iterator[GroupCopy]:
        for group in self.artifact.groups:
            receipt = group.receipt
            found = None if receipt is None else self._found(receipt)
            if found is not None and receipt is not None and found.data != receipt.data:
                continue
            vouched = complete if receipt is None else found is not None
            missing = self._missing(group, same=same or vouched, vouched=vouched)
            yield GroupCopy(missing, receipt if found is None else None)

    def _missing(self, group: FileGroup, *, same: bool, vouched: bool) -> dict[str, FileRecord]:
        """The group's files that are not there as they must be.

        Args:
            group: the files.
            same: the target's folder is this artifact's: what differs may be replaced.
            vouched: a receipt or manifest that is there names these files.

        Raises:
            AlreadyExistsError: a file that differs, in a folder that may be another artifact's.
        """
        present = {path: record for path, record in group.files.items() if path in self.sizes}
        sized = {
            path: record for path, record in present.items() if self.sizes[path] == record.num_bytes
        }
        whole = set(sized)
        if self.check or not vouched:
            checked = self.pool.map(lambda path: matches(self.target / path, sized[path]), sized)
            whole = {path for path, equal in zip(sized, checked, strict=True) if equal}
        if not same and len(whole) < len(present):
            other = min(present.keys() - whole)
            raise AlreadyExistsError(
                f"{self.target} holds a file {other} that is not the one of {self.artifact.path} "
                f"in {self.artifact.location}: something else has this name. Nothing was copied; "
                "delete it there if it is not needed."
            )
        return {path: record for path, record in group.files.items() if path not in whole}

    def _found(self, document: Document) -> Document | None:
        """The target's document of the same path.

        Raises:
            AlreadyExistsError: it stands for something else.
        """
        if document.path not in self.sizes:
            return None
        try:
            found = read_document(self.target, document.path, self.identity)
        except NotFoundError:
            return None
        except (CorruptionError, InvalidInputError) as error:
            raise AlreadyExistsError(
                f"{self.artifact.path} cannot be copied to {self.target}: what lies there is "
                f"damaged ({error}) Nothing was copied; delete it there and copy again."
            ) from error
        if found.identity != document.identity:
            raise AlreadyExistsError(
                f"{self.target} is another {self.artifact.path}: its {document.path} has the "
                f"digest {found.identity}, the one of {self.artifact.location} has "
                f"{document.identity}. Nothing was copied; delete or rename one of the two."
            )
        return found
