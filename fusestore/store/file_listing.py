"""`FileListing`: the files that a manifest lists, where there may be many thousands.

A dataset of 15,000 shards has 150,000 files. As JSON objects their records are 24 MB, and reading
them takes seconds of every opening. So a run of numbered files is one value of the manifest:

    "ids/c/{0..14999}/0": {"sha256_base64": "…", "sizes_base64": "…"}

The key names the files as a shell expands it. The values are those of all files in the order of
their numbers: sizes as little-endian int64, and 32 bytes of SHA-256 each. They are decoded to two
arrays, and a record is made when it is looked up. Runs of fewer than `LEAST` files are listed file
by file, for people.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from fusestore.errors import CorruptionError, InvalidInputError
from fusestore.storage.foreign_names import listed_inside
from fusestore.store.manifest import Frozen
from fusestore.store.receipts import FileRecord

LEAST = 100
"""A run of fewer files is listed file by file."""

_NUMBERED = re.compile(
    r"(?P<prefix>(?:.*/)?c/)(?P<number>0|[1-9]\d*)(?P<suffix>(?:/0)*)"
    r"|(?P<folder>(?:.*/)?receipts/)(?P<part>\d{6,})(?P<ending>\.json)"
)
"""Files of arrays, and receipts: what a dataset has for every shard."""

_RUN = re.compile(r"(?P<prefix>[^{}]*)\{(?P<first>0+)\.\.(?P<last>\d{1,12})\}(?P<suffix>[^{}]*)")

_MOST_RUNS = 100

_SHA256_BYTES = 32


class PackedRecords(Frozen):
    """Records of a run of numbered files, in the order of their numbers.

    Attributes:
        sizes_base64: of each file, in bytes: little-endian int64.
        sha256_base64: of each file, 32 bytes.
    """

    sizes_base64: str
    sha256_base64: str


@dataclass(frozen=True, eq=False)
class FileRun:
    """Files numbered from 0: `prefix`, the number in at least `digits` digits, `suffix`.

    Attributes:
        prefix, suffix: of each path.
        digits: fewest digits of a number.
        sizes: int64 [n], bytes of each file.
        sha256: uint8 [n, 32].
    """

    prefix: str
    suffix: str
    digits: int
    sizes: npt.NDArray[np.int64]
    sha256: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def key(self) -> str:
        """All paths in one, as a shell expands it."""
        width = self.digits
        return f"{self.prefix}{{{0:0{width}d}..{len(self) - 1:0{width}d}}}{self.suffix}"

    def path(self, number: int) -> str:
        """The path of one file."""
        return f"{self.prefix}{number:0{self.digits}d}{self.suffix}"

    def record(self, number: int) -> FileRecord:
        """The record of one file."""
        return FileRecord(
            num_bytes=int(self.sizes[number]), sha256=self.sha256[number].tobytes().hex()
        )

    def packed(self) -> dict[str, str]:
        """The records as in a manifest."""
        return {
            "sha256_base64": base64.b64encode(self.sha256.tobytes()).decode(),
            "sizes_base64": base64.b64encode(self.sizes.astype("<i8").tobytes()).decode(),
        }

    def has_number(self, digits: str) -> bool:
        """Whether a file of the run is numbered with these digits, of whatever script."""
        number = int(digits[:18])
        written = f"{number:0{self.digits}d}"
        return number < len(self) and written == "".join(str(int(digit)) for digit in digits)

    @classmethod
    def unpacked(cls, key: str, packed: PackedRecords) -> Self:
        """The run that a manifest lists.

        Raises:
            InvalidInputError: the key names no run, or the records are not those of its files.
        """
        match = _RUN.fullmatch(key)
        if match is None:
            raise InvalidInputError(
                f"{key!r} has packed records, but names no run of files such as 'ids/c/{{0..99}}'."
            )
        try:
            sizes = np.frombuffer(base64.b64decode(packed.sizes_base64, validate=True), "<i8")
            sha256 = np.frombuffer(base64.b64decode(packed.sha256_base64, validate=True), np.uint8)
            sha256 = sha256.reshape(-1, _SHA256_BYTES)
        except (binascii.Error, ValueError) as error:
            raise InvalidInputError(
                f"The packed records of {key!r} are damaged: {error}"
            ) from error
        count = int(match["last"]) + 1
        if not len(sizes) == len(sha256) == count:
            raise InvalidInputError(
                f"{key!r} has {len(sizes):,} sizes and {len(sha256):,} SHA-256; expected {count:,}."
            )
        if sizes.min() < 0:
            raise InvalidInputError(f"{key!r} lists a file of {sizes.min():,} bytes.")
        run = cls(match["prefix"], match["suffix"], len(match["first"]), sizes, sha256)
        if run.key != key:
            raise InvalidInputError(f"{key!r} names no run of files; {run.key!r} would.")
        return run


class FileListing(Mapping[str, FileRecord]):
    """Records of files by path inside a folder. Immutable.

    A pydantic type: a dictionary of `FileRecord` becomes a listing, with its runs packed. A listing
    that was read keeps the form in which it was stored, so its bytes and its digest stay as they
    are.
    """

    def __init__(self, plain: Mapping[str, FileRecord], runs: Mapping[str, FileRun]) -> None:
        """Files one by one, and runs by prefix. Made by `of`, or from a manifest."""
        self._plain = dict(plain)
        self._runs = dict(runs)

    @classmethod
    def of(cls, records: Mapping[str, FileRecord]) -> FileListing:
        """The listing of these files."""
        if isinstance(records, FileListing):
            return records
        found: dict[tuple[str, str], dict[int, FileRecord]] = {}
        for path, record in records.items():
            match = _NUMBERED.fullmatch(path)
            if match is None:
                continue
            prefix, number, suffix = [part for part in match.groups() if part is not None]
            if number == f"{int(number):0{_digits(prefix)}d}":
                found.setdefault((prefix, suffix), {})[int(number)] = record
        plain = dict(records)
        runs: dict[str, FileRun] = {}
        for (prefix, suffix), numbered in found.items():
            if len(numbered) < LEAST or max(numbered) >= len(numbered) or prefix in runs:
                continue
            ordered = [numbered[number] for number in range(len(numbered))]
            sha256 = b"".join(bytes.fromhex(record.sha256) for record in ordered)
            runs[prefix] = run = FileRun(
                prefix,
                suffix,
                _digits(prefix),
                np.array([record.num_bytes for record in ordered], np.int64),
                np.frombuffer(sha256, np.uint8).reshape(-1, _SHA256_BYTES),
            )
            for number in range(len(run)):
                del plain[run.path(number)]
        return cls(plain, runs)

    @classmethod
    def stored(cls, listed: Mapping[str, FileRecord | PackedRecords]) -> FileListing:
        """The listing of a manifest, in its form there.

        Raises:
            InvalidInputError: a run is damaged, or a path is listed twice or leads out.
        """
        plain: dict[str, FileRecord] = {}
        runs: dict[str, FileRun] = {}
        for key, record in listed.items():
            if isinstance(record, FileRecord):
                plain[key] = record
                continue
            run = FileRun.unpacked(key, record)
            if run.prefix in runs or len(runs) == _MOST_RUNS:
                raise InvalidInputError(
                    f"It lists {key!r} beside another run of files with this beginning, or beside "
                    f"{_MOST_RUNS} others."
                )
            runs[run.prefix] = run
        listing = cls(plain, runs)
        listing.check()
        return listing

    def check(self) -> None:
        """Check that the paths lie inside the folder, and that no two are one file.

        Raises:
            InvalidInputError: they do not.
        """
        ends = [
            (run, run.path(number)) for run in self._runs.values() for number in (0, len(run) - 1)
        ]
        listed_inside("The manifest or receipt", [*self._plain, *(path for _, path in ends)])
        by_prefix = {prefix.lower(): run for prefix, run in self._runs.items()}
        for owner, path in (*((None, path) for path in self._plain), *ends) if by_prefix else ():
            for found in re.finditer(r"\d+", path):
                run = by_prefix.get(path[: found.start()].lower())
                if run is None or run is owner or not run.has_number(found[0]):
                    continue
                rest, suffix = path[found.end() :].lower(), run.suffix.lower()
                if f"{rest}/".startswith(f"{suffix}/") or suffix.startswith(f"{rest}/"):
                    raise InvalidInputError(
                        f"It lists {path!r} beside {run.key!r}, which may be one file. Do not "
                        "trust this store."
                    )

    def run_of(self, prefix: str) -> FileRun | None:
        """The run of files that begin with this, if they are listed as one."""
        return self._runs.get(prefix)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The value of the manifest."""
        plain = {path: record.model_dump(mode="json") for path, record in self._plain.items()}
        return plain | {run.key: run.packed() for run in self._runs.values()}

    def __getitem__(self, path: str) -> FileRecord:
        found = self._plain.get(path)
        if found is None:
            run, number = self._in_run(path)
            found = run.record(number)
        return found

    def __contains__(self, path: object) -> bool:
        if path in self._plain:
            return True
        try:
            self._in_run(str(path))
        except KeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        for run in self._runs.values():
            yield from map(run.path, range(len(run)))

    def __len__(self) -> int:
        return len(self._plain) + sum(map(len, self._runs.values()))

    def __repr__(self) -> str:
        return f"FileListing({[*self._plain, *(run.key for run in self._runs.values())]!r:.500})"

    def _in_run(self, path: str) -> tuple[FileRun, int]:
        if self._runs:
            for match in re.finditer(r"\d+", path):
                run = self._runs.get(path[: match.start()])
                if run is not None and len(match[0]) < 19:
                    number = int(match[0])
                    if number < len(run) and run.path(number) == path:
                        return run, number
        raise KeyError(path)

    @classmethod
    def __get_pydantic_core_schema__(
        cls,
        _source: Any,  # noqa: ANN401 - pydantic's protocol
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            cls._validated,
            handler.generate_schema(dict[str, FileRecord | PackedRecords]),
            serialization=core_schema.plain_serializer_function_ser_schema(_to_json),
        )

    @classmethod
    def _validated(cls, value: Any, inner: Callable[[Any], Any]) -> FileListing:  # noqa: ANN401
        if isinstance(value, FileListing):
            return value
        listed = inner(value)
        if all(isinstance(record, FileRecord) for record in value.values()):
            listing = cls.of(listed)
            listing.check()
            return listing
        return cls.stored(listed)


def _to_json(listed: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    # A copy of a manifest is not validated, so it may hold a dictionary.
    return FileListing.of(listed).to_json()


def _digits(prefix: str) -> int:
    return 6 if prefix.endswith("receipts/") else 1


_LISTED = TypeAdapter(dict[str, FileRecord | PackedRecords])


def file_records(manifest: Mapping[str, Any], name: str) -> FileListing:
    """The records of the files that a manifest lists, by path.

    Args:
        manifest: content of a manifest of any kind.
        name: of its file, for messages.

    Raises:
        CorruptionError: it has no valid list of files.
        InvalidInputError: it lists a path twice, or one that leads out of its folder.
    """
    try:
        listed = _LISTED.validate_python(manifest["files"])
    except (KeyError, ValidationError) as error:
        raise CorruptionError(f"{name} has no valid list of its files: {error!r:.2000}.") from error
    return FileListing.stored(listed)
