"""Shards, the units of work, and receipts, which prove that a shard is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Self

from pydantic import AfterValidator, Field
from typing_extensions import TypeVar

from fusestore.errors import InvalidInputError
from fusestore.storage.foreign_names import listed_inside
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.manifest import Count, Frozen, Manifest, digest_bytes


@dataclass(frozen=True)
class ShardPlan:
    """`num_rows` rows cut into shards of `rows_per_shard`; the last one may be shorter."""

    num_rows: int
    rows_per_shard: int

    def __post_init__(self) -> None:
        if self.num_rows < 0 or self.rows_per_shard < 1:
            raise InvalidInputError(
                f"{self.num_rows} rows cannot be divided into shards of {self.rows_per_shard}: "
                "there must be 0 or more rows, and 1 or more in a shard."
            )

    def __len__(self) -> int:
        """The number of shards."""
        return -(-self.num_rows // self.rows_per_shard)

    def bounds(self, shard: int) -> tuple[int, int]:
        """The shard's rows `[start, stop)`.

        Raises:
            InvalidInputError: no such shard.
        """
        if not 0 <= shard < len(self):
            raise InvalidInputError(f"There is no shard {shard}; shards are 0 to {len(self) - 1}.")
        start = shard * self.rows_per_shard
        return start, min(start + self.rows_per_shard, self.num_rows)


class FileRecord(Frozen):
    """Size and checksum of a published file."""

    num_bytes: Count
    sha256: str = Field(pattern="^[0-9a-f]{64}$")

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """The record of these bytes."""
        return cls(num_bytes=len(data), sha256=digest_bytes(data))


def _check_listed(files: dict[str, FileRecord]) -> dict[str, FileRecord]:
    listed_inside("The manifest or receipt", files)
    return files


FileRecords = Annotated[dict[str, FileRecord], AfterValidator(_check_listed)]
"""Records of files by path inside a folder; a manifest with a path that leads out is refused."""


C = TypeVar("C", default=Any)
"""What a stage adds to its receipts; a reader of receipts of any stage ignores it."""


class Receipt(Manifest, Generic[C]):
    """Proves that the files of one part are published whole; written after them, never changed.

    Attributes:
        part: the shard's number in six digits, or the name of a part that is not a shard.
        start: first row of the part.
        stop: one past its last row.
        fingerprint_digest: digest of the fingerprint under which it was made.
        files: records of the files, by path relative to the artifact's folder.
        content: added by the stage, such as sums over the shard; null for most.
    """

    part: str
    start: Count
    stop: Count
    fingerprint_digest: str
    files: FileRecords
    content: C = Field(default=None, validate_default=True)

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """One name for all receipts, whatever their content."""
        del params
        return "Receipt"

    @classmethod
    def publish(
        cls,
        folder: Location,
        part: str,
        rows: tuple[int, int],
        fingerprint_digest: str,
        files: Mapping[str, bytes],
    ) -> Self:
        """Publish the files of a part, by path in the artifact's folder, and then its receipt."""
        receipt = cls(
            part=part,
            start=rows[0],
            stop=rows[1],
            fingerprint_digest=fingerprint_digest,
            files={name: FileRecord.of(data) for name, data in files.items()},
        )
        for name, data in files.items():
            publish(folder / name, data)
        publish(folder / receipt_path(part), receipt.to_bytes())
        return receipt

    @property
    def num_bytes(self) -> int:
        """Bytes in all files together."""
        return sum(record.num_bytes for record in self.files.values())


def shard_part(shard: int) -> str:
    """The part of a receipt that stands for a shard: the shard's number in six digits."""
    return f"{shard:06d}"


def receipt_path(part: str) -> str:
    """The file of a part's receipt in the artifact's folder."""
    return f"receipts/{part}.json"
