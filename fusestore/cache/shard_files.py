"""Publishes the shards of a distribution cache, each with the receipt that proves it whole."""

from __future__ import annotations

from collections.abc import Mapping

from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_new, retract
from fusestore.store.receipts import FileRecord, Receipt, receipt_path


class ShardFiles:
    """The files of a cache's shards, and of its tokens, on disk.

    Args:
        location: the cache's folder.
        fingerprint_digest: receipts of another fingerprint do not count.
    """

    def __init__(self, location: Location, fingerprint_digest: str) -> None:
        self._location = location
        self._fingerprint_digest = fingerprint_digest
        self._receipts: dict[str, Receipt] = {}

    def publish(self, part: str, start: int, stop: int, files: Mapping[str, bytes]) -> Receipt:
        """Publish the files of a part, then its receipt; whole ones of another writer stay.

        Raises:
            AlreadyExistsError: the part was written with other content.
        """
        receipt = Receipt(
            part=part,
            start=start,
            stop=stop,
            fingerprint_digest=self._fingerprint_digest,
            files={name: FileRecord.of(data) for name, data in files.items()},
        )
        file = self._receipt_file(part)
        if file.has_file():
            if self.whole_receipt(part, self._location.sizes()) is not None:
                publish_new(file, receipt.to_bytes())
                return receipt
            self.forget(part)
        self._publish_all(files)
        try:
            publish_new(file, receipt.to_bytes())
        except AlreadyExistsError:
            # Another writer, on a device that rounds in another way, made this shard at the same
            # time. The files may be a mixture. All must be of one writer: if they do not match its
            # receipt, they become ours.
            if self._holds(self._load_receipt(part)):
                return self._load_receipt(part)
            self.forget(part)
            self._publish_all(files)
            publish_new(file, receipt.to_bytes())
        return receipt

    def _publish_all(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            publish(self._location / name, data)

    def forget(self, part: str) -> None:
        """Remove the receipt of damaged files, before they are made again."""
        self._receipts.pop(part, None)
        retract(self._receipt_file(part))

    def _holds(self, receipt: Receipt) -> bool:
        """Whether the files match the receipt, byte for byte."""
        return all(
            FileRecord.of((self._location / name).read_bytes()) == record
            for name, record in receipt.files.items()
        )

    def _load_receipt(self, part: str) -> Receipt:
        # Receipts never change, so each is read once.
        if part not in self._receipts:
            self._receipts[part] = Receipt.load(self._receipt_file(part))
        return self._receipts[part]

    def whole_receipt(self, part: str, sizes: Mapping[str, int]) -> Receipt | None:
        """The part's receipt if it is sound and its files have the right sizes."""
        receipt = self.sound_receipt(part, sizes)
        if receipt is None:
            return None
        whole = all(sizes.get(name) == record.num_bytes for name, record in receipt.files.items())
        return receipt if whole else None

    def sound_receipt(self, part: str, sizes: Mapping[str, int]) -> Receipt | None:
        """The part's receipt if it exists and is valid, whatever the state of its files."""
        if receipt_path(part) not in sizes:
            return None
        try:
            receipt = self._load_receipt(part)
        except (CorruptionError, InvalidInputError, NotFoundError):
            return None
        if (receipt.part, receipt.fingerprint_digest) != (part, self._fingerprint_digest):
            return None
        return receipt

    def _receipt_file(self, part: str) -> Location:
        return self._location / receipt_path(part)
