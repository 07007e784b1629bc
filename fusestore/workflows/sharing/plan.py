"""The missing files of an artifact at a target, and conflicts with existing files.

Writes nothing. A file counts as copied if it has the right size and the target has the document
that records it (its receipt, or the manifest). Any other existing file is read and compared,
because another artifact may have written it.
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
from fusestore.store.fingerprints import check_case
from fusestore.store.receipts import FileRecord
from fusestore.store.registry import split_path


@dataclass(frozen=True)
class GroupCopy:
    """The missing files of a group, and its receipt if the target lacks it."""

    files: Mapping[str, FileRecord]
    receipt: Document | None


@dataclass(frozen=True)
class Plan:
    """The missing documents and files of an artifact at the target.

    Attributes:
        artifact: the artifact in its own store.
        target: the folder to copy to.
        fingerprint: the document to write first; None if it exists.
        groups: the groups with missing files or receipts.
        manifest: the document to write last; None if it exists.
    """

    artifact: ArtifactFiles
    target: Location
    fingerprint: Document | None
    groups: tuple[GroupCopy, ...]
    manifest: Document | None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is missing."""
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
    """Compare an artifact with the target's folder.

    Args:
        artifact: the artifact to copy.
        target: the folder to copy to, existing or not.
        pool: threads that read files to compare.
        check: also read existing files that a receipt records.

    Raises:
        AlreadyExistsError: the target has another artifact of this name.
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
        begun = fingerprint is not None and self._existing(fingerprint) is not None
        if not begun:
            check_case(self.target)
        manifest = self._existing(artifact.manifest)
        if manifest is not None and manifest.data != artifact.manifest.data:
            # A complete artifact with the same content in other bytes: nothing is copied.
            return Plan(artifact, self.target, None, (), None)
        groups = tuple(self._groups(begun or manifest is not None, manifest is not None))
        return Plan(
            artifact,
            self.target,
            None if begun else fingerprint,
            tuple(group for group in groups if group.files or group.receipt),
            None if manifest is not None else artifact.manifest,
        )

    def _groups(self, same: bool, complete: bool) -> Iterator[GroupCopy]:
        for group in self.artifact.groups:
            receipt = group.receipt
            existing = None if receipt is None else self._existing(receipt)
            if existing is not None and receipt is not None and existing.data != receipt.data:
                continue
            recorded = complete if receipt is None else existing is not None
            missing = self._missing(group, same=same or recorded, recorded=recorded)
            yield GroupCopy(missing, receipt if existing is None else None)

    def _missing(self, group: FileGroup, *, same: bool, recorded: bool) -> dict[str, FileRecord]:
        """The group's files that the target lacks or has with other content.

        Args:
            group: the files.
            same: whether the target's folder is this artifact's, so that differing files may be
                replaced.
            recorded: whether a receipt or manifest of the target records these files.

        Raises:
            AlreadyExistsError: a file differs, and the folder may be another artifact's.
        """
        present = {path: record for path, record in group.files.items() if path in self.sizes}
        sized = {
            path: record for path, record in present.items() if self.sizes[path] == record.num_bytes
        }
        whole = set(sized)
        if self.check or not recorded:
            checked = self.pool.map(lambda path: matches(self.target / path, sized[path]), sized)
            whole = {path for path, equal in zip(sized, checked, strict=True) if equal}
        if not same and len(whole) < len(present):
            differing = min(present.keys() - whole)
            raise AlreadyExistsError(
                f"{self.target} holds a file {differing} that differs from that of "
                f"{self.artifact.path} in {self.artifact.location}: another artifact has this "
                f"name. Nothing was copied; delete {self.target} if it is not needed."
            )
        return {path: record for path, record in group.files.items() if path not in whole}

    def _existing(self, document: Document) -> Document | None:
        """The target's document of the same path; None if the target lacks it.

        Raises:
            AlreadyExistsError: it is another artifact's.
        """
        if document.path not in self.sizes:
            return None
        try:
            existing = read_document(self.target, document.path, self.identity)
        except NotFoundError:
            return None
        except (CorruptionError, InvalidInputError) as error:
            raise AlreadyExistsError(
                f"{self.artifact.path} cannot be copied to {self.target}: its {document.path} is "
                f"damaged ({error}) Nothing was copied; delete that folder and copy again."
            ) from error
        if existing.identity != document.identity:
            raise AlreadyExistsError(
                f"{self.target} is another {self.artifact.path}: its {document.path} has the "
                f"digest {existing.identity}, that of {self.artifact.location} has "
                f"{document.identity}. Nothing was copied; delete or rename one of the two."
            )
        return existing
