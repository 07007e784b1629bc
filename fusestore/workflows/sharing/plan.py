"""Comparing a thing with what lies under its name elsewhere: what is missing, what contradicts.

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
from fusestore.store.copy import matches
from fusestore.store.receipts import FileRecord
from fusestore.workflows.sharing.things import Document, Part, ThingFiles, read_document


@dataclass(frozen=True)
class PartCopy:
    """What is missing of one part: files, and the receipt if it is not there."""

    files: Mapping[str, FileRecord]
    seal: Document | None


@dataclass(frozen=True)
class Plan:
    """What is missing of one thing at the target.

    Attributes:
        thing: the thing as its own store has it.
        target: the folder it goes to.
        claim: the document to write first, if it is not there.
        parts: those with anything missing.
        manifest: the document to write last, if it is not there.
    """

    thing: ThingFiles
    target: Location
    claim: Document | None
    parts: tuple[PartCopy, ...]
    manifest: Document | None

    @property
    def is_empty(self) -> bool:
        """Whether the target has everything."""
        return not (self.claim or self.parts or self.manifest)

    @property
    def files(self) -> dict[str, FileRecord]:
        """All data files to copy."""
        return {path: record for part in self.parts for path, record in part.files.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of data to copy."""
        return sum(record.num_bytes for record in self.files.values())


def plan_copy(thing: ThingFiles, target: Location, pool: Executor, *, check: bool) -> Plan:
    """Compare.

    Args:
        thing: what is to be copied.
        target: the folder it goes to, there or not.
        pool: runs the reading of files that must be compared.
        check: read every file that is there, also those a receipt vouches for.

    Raises:
        AlreadyExistsError: something else has this name at the target.
    """
    return _Comparison(thing, target, pool, check).plan()


class _Comparison:
    def __init__(self, thing: ThingFiles, target: Location, pool: Executor, check: bool) -> None:
        self.thing, self.target, self.pool, self.check = thing, target, pool, check
        self.kind = thing.name.partition("/")[0]
        self.sizes = target.sizes()

    def plan(self) -> Plan:
        thing = self.thing
        claim_there = thing.claim is not None and self._is_there(thing.claim)
        found = self._found(thing.manifest)
        if found is not None and found.data != thing.manifest.data:
            # The same content in other bytes: a complete thing of its own, and left alone.
            return Plan(thing, self.target, None, (), None)
        mine = claim_there or found is not None
        parts = tuple(self._parts(mine, found is not None))
        return Plan(
            thing,
            self.target,
            None if claim_there else thing.claim,
            tuple(part for part in parts if part.files or part.seal),
            None if found is not None else thing.manifest,
        )

    def _parts(self, mine: bool, complete: bool) -> Iterator[PartCopy]:
        for part in self.thing.parts:
            found = None if part.seal is None else self._found(part.seal)
            if found is not None and part.seal is not None and found.data != part.seal.data:
                continue
            vouched = complete if part.seal is None else found is not None
            missing = self._missing(part, mine=mine or vouched, vouched=vouched)
            yield PartCopy(missing, part.seal if found is None else None)

    def _missing(self, part: Part, *, mine: bool, vouched: bool) -> dict[str, FileRecord]:
        """The part's files that are not there as they must be.

        Args:
            part: the part.
            mine: the target's folder is this thing's: what differs may be replaced.
            vouched: a receipt or manifest that is there names these files.

        Raises:
            AlreadyExistsError: a file that differs, in a folder that may be another thing's.
        """
        present = {path: record for path, record in part.files.items() if path in self.sizes}
        sized = {
            path: record for path, record in present.items() if self.sizes[path] == record.num_bytes
        }
        same = set(sized)
        if self.check or not vouched:
            checked = self.pool.map(lambda path: matches(self.target / path, sized[path]), sized)
            same = {path for path, whole in zip(sized, checked, strict=True) if whole}
        if not mine and len(same) < len(present):
            other = min(present.keys() - same)
            raise AlreadyExistsError(
                f"{self.target} holds a file {other} that is not the one of {self.thing.name} in "
                f"{self.thing.location}: something else has this name. Nothing was copied; delete "
                "it there if it is not needed."
            )
        return {path: record for path, record in part.files.items() if path not in same}

    def _is_there(self, document: Document) -> bool:
        return self._found(document) is not None

    def _found(self, document: Document) -> Document | None:
        """The target's document of the same path.

        Raises:
            AlreadyExistsError: it stands for something else.
        """
        if document.path not in self.sizes:
            return None
        try:
            found = read_document(self.target, document.path, self.kind)
        except NotFoundError:
            return None
        except (CorruptionError, InvalidInputError) as error:
            raise AlreadyExistsError(
                f"{self.thing.name} cannot be copied to {self.target}: what lies there is damaged "
                f"({error}) Nothing was copied; delete it there and copy again."
            ) from error
        if found.identity != document.identity:
            raise AlreadyExistsError(
                f"{self.target} is another {self.thing.name}: its {document.path} has the digest "
                f"{found.identity}, the one of {self.thing.location} has {document.identity}. "
                "Nothing was copied; delete or rename one of the two."
            )
        return found
