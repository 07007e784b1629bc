"""Writing a distribution cache, in any order of shards and over any number of runs.

Order on disk: fingerprint, then the order of ids, metadata and tokens with their receipt, then for
each shard its files and after them its receipt, and the manifest when nothing is missing. A run may
be killed at any moment; the next one does what has no receipt. Several writers at once divide the
shards by claims (`storage.claims`). Equal input gives equal bytes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.layout import cache_arrays, encode_rows
from fusestore.cache.manifest import (
    TOKENS_PART,
    CacheManifest,
    Fingerprint,
    content_digest,
)
from fusestore.cache.reader import RowReader
from fusestore.cache.rows import Rows
from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_new, remove_abandoned
from fusestore.store.arrays import array_metadata, encode_shard, group_metadata
from fusestore.store.fingerprints import check_same_fingerprint, write_fingerprint
from fusestore.store.layout import Store
from fusestore.store.leases import Claims, remove_claims
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenTable

SECONDS_BETWEEN_LOOKS = 1.0
"""How often a writer that has nothing left to do looks how the others are doing."""


class CacheWriter:
    """Made by `create`.

    Attributes:
        reader: reads the rows of shards that are written.
        num_rows_finished: rows of the shards that were finished at the last look.
        redo: shards that count as missing until they are written, whatever is there; with the
            receipt that tells what must come out, where that is known.
    """

    def __init__(
        self,
        location: Location,
        fingerprint: Fingerprint,
        tokens: TokenTable,
        order: IdOrder | None,
    ) -> None:
        self.location = location
        self.fingerprint = fingerprint
        self.plan = fingerprint.plan
        self.reader = RowReader(location, fingerprint)
        self._arrays = cache_arrays(fingerprint)
        self._tokens = tokens
        self._order = order
        self._receipts: dict[str, Receipt] = {}
        self.num_rows_finished = 0
        self.redo: dict[int, Receipt | None] = {}

    @classmethod
    def create(
        cls,
        store: Store,
        name: str,
        fingerprint: Fingerprint,
        tokens: TokenTable,
        order: IdOrder | None,
    ) -> CacheWriter:
        """Begin a cache, or continue one of the same fingerprint.

        Args:
            store: where it goes.
            name: the cache's name.
            fingerprint: what it is made with.
            tokens: what the model reads: the rows' tokens.
            order: how ids are numbered; None in the profile `fast`. A cache that was begun has
                its own: see `stored_order`.

        Raises:
            InvalidInputError: fingerprint, tokens and order do not fit each other.
            FingerprintMismatchError: the cache was begun with other settings.
        """
        _check_input(fingerprint, tokens, order)
        location = store.cache(name)
        write_fingerprint(location, fingerprint, f"Cache {name!r}")
        remove_abandoned(location)
        writer = cls(location, fingerprint, tokens, order)
        writer._write_tokens()
        return writer

    @property
    def complete(self) -> bool:
        """Whether the cache is finished."""
        return (self.location / "manifest.json").exists()

    def missing_shards(self) -> list[int]:
        """Shards without a receipt, or whose files are not there as the receipt says."""
        finished = set(self.finished_shards())
        return [shard for shard in range(len(self.plan)) if shard not in finished]

    @contextlib.contextmanager
    def claim_shards(
        self, *, first: int = 0, waiting: Callable[[int], None] | None = None
    ) -> Iterator[Iterator[int]]:
        """Share the missing shards with every other writer of this cache.

        A context that yields an iterator of the shards to write, each claimed when it is asked
        for. It ends when all shards are written by someone; before that it waits for writers that
        are still at theirs, and takes over what dead ones leave. Inside the context this writer
        counts as alive: write what was claimed before leaving it.

        Args:
            first: the shard to begin looking at.
            waiting: told the number of shards that others hold, once, before the first wait.
        """
        told = False

        def wait(count: int) -> None:
            nonlocal told
            if waiting is not None and not told:
                waiting(count)
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)

        claims = Claims(_claims(self.location), self.finished_shards, len(self.plan), first=first)
        with claims:
            yield claims.shards(wait)

    def finished_shards(self) -> list[int]:
        """Shards with a receipt, whose files are there as it says; written by whomever."""
        sizes = self.location.sizes()
        finished = [
            shard
            for shard in range(len(self.plan))
            if shard not in self.redo and self._whole_receipt(shard_part(shard), sizes) is not None
        ]
        bounds = [self.plan.bounds(shard) for shard in finished]
        self.num_rows_finished = sum(stop - start for start, stop in bounds)
        return finished

    def write_shard(self, shard: int, rows: Rows) -> Receipt:
        """Publish one shard: its files, then its receipt.

        Args:
            shard: which one.
            rows: all its rows, in order.

        Raises:
            InvalidInputError, NonFiniteError: rows that cannot be a shard; nothing was written.
            AlreadyExistsError: the shard was written with other content.
            IncompatibleError: the shard is to be done again, and other content comes out.
        """
        start, stop = self.plan.bounds(shard)
        if len(rows) != stop - start:
            raise InvalidInputError(
                f"Shard {shard} takes rows {start} to {stop}, {stop - start} in all; "
                f"not {len(rows)}."
            )
        token_ids = self._tokens.token_ids[start:stop]
        values = encode_rows(self.fingerprint, rows, token_ids, self._order)
        files = {
            spec.file_name(shard): encode_shard(spec, shard, np.ascontiguousarray(array))
            for spec, array in zip(self._arrays.per_shard, values, strict=True)
        }
        part = shard_part(shard)
        if shard in self.redo:
            expected = self.redo[shard]
            records = {name: FileRecord.of(data) for name, data in files.items()}
            if expected is not None and records != expected.files:
                raise IncompatibleError(
                    f"Shard {shard} of {self.location} comes out in other bytes than were "
                    "captured: this device, batch size or version rounds otherwise. It was left as "
                    "it is. Repair it with what captured it, or capture all of it again under "
                    "another name."
                )
            self._forget(part)
        receipt = self._publish(part, start, stop, files)
        self.redo.pop(shard, None)
        return receipt

    def finish(
        self,
        scores: Mapping[str, float],
        skipped_documents: Sequence[int],
        model_spec: str | None = None,
    ) -> CacheManifest:
        """Write the manifest: from now on the cache can be opened.

        Args:
            scores: sums over the corpus, by name.
            skipped_documents: corpus indices of documents whose rows are `blank_rows`.
            model_spec: what opens the model on any machine, if something does. Of several writers
                that were given the model in different ways, the first one to finish settles it.

        Raises:
            InvalidInputError: a shard is missing.
            AlreadyExistsError: it was finished before with other scores or skipped documents.
        """
        sizes = self.location.sizes()
        parts = [TOKENS_PART, *(shard_part(shard) for shard in range(len(self.plan)))]
        receipts: list[Receipt] = []
        for part in parts:
            receipt = self._whole_receipt(part, sizes)
            if receipt is None:
                raise InvalidInputError(
                    f"{self.location} cannot be finished: part {part} is missing. "
                    "Write the shards that `missing_shards` names first."
                )
            receipts.append(receipt)
        manifest = CacheManifest(
            fingerprint_digest=self.fingerprint.digest,
            fingerprint=self.fingerprint,
            scores=dict(scores),
            skipped_documents=tuple(sorted(int(index) for index in set(skipped_documents))),
            num_bytes=sum(receipt.num_bytes for receipt in receipts),
            content_digest=content_digest(receipts),
            model_spec=model_spec,
        )
        file = self.location / "manifest.json"
        try:
            manifest.save(file)
        except AlreadyExistsError:
            existing = CacheManifest.load(file)
            if existing.model_copy(update={"model_spec": model_spec}) != manifest:
                raise
            return existing
        return manifest

    def _write_tokens(self) -> None:
        arrays, tokens, order = self._arrays, self._tokens, self._order
        files = {
            "zarr.json": group_metadata(
                {"fusestore": {"kind": "cache", "format_version": self.fingerprint.format_version}}
            )
        }
        files |= {
            f"{spec.name}/zarr.json": array_metadata(spec)
            for spec in (*arrays.per_shard, *arrays.fixed)
        }
        values: tuple[npt.NDArray[Any], ...] = (
            tokens.token_ids,
            tokens.end_offsets,
            tokens.document_offsets,
        )
        if order is not None:
            values += (order.rank_to_id, order.token_class, order.class_order)
        for spec, array in zip(arrays.fixed, values, strict=True):
            for shard in range(spec.num_files):
                start, stop = spec.rows_of(shard)
                files[spec.file_name(shard)] = encode_shard(spec, shard, array[start:stop])
        sizes = self.location.sizes()
        told = self._sound_receipt(TOKENS_PART, sizes)
        if told is None:
            self._settle_order(files, sizes)
        elif told.files != {name: FileRecord.of(data) for name, data in files.items()}:
            raise FingerprintMismatchError(
                f"{self.location} holds other tokens or another order of ids than this run has, "
                "under the same fingerprint. Capture under another name, or delete it."
            )
        if self._whole_receipt(TOKENS_PART, sizes) is None:
            self._publish(TOKENS_PART, 0, self.fingerprint.num_tokens, files)

    def _settle_order(self, files: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        """Write the order of ids, which every shard depends on, create-only.

        So the first of several writers settles it; another one cannot take its place, even where
        its receipt is not there yet, or not any more. Where it is lost with its receipt, what is
        there of shards says nothing any more: they are made again. Of a complete cache they stay:
        its manifest tells whether this order is the one they were written with.
        """
        names = [spec.file_name(0) for spec in self._arrays.id_order]
        if any(name not in sizes for name in names) and not self.complete:
            for shard in range(len(self.plan)):
                file = self._receipt_file(shard_part(shard))
                if f"receipts/{file.name}" in sizes:
                    file.delete()
        for name in names:
            try:
                publish_new(self.location / name, files[name])
            except AlreadyExistsError as error:
                raise FingerprintMismatchError(
                    f"{self.location} was begun with another order of ids, by a writer whose "
                    "device rounds otherwise. Run the same command again to go on with that order; "
                    "if that fails too, delete this cache."
                ) from error

    def _publish(self, part: str, start: int, stop: int, files: Mapping[str, bytes]) -> Receipt:
        receipt = Receipt(
            part=part,
            start=start,
            stop=stop,
            fingerprint_digest=self.fingerprint.digest,
            files={name: FileRecord.of(data) for name, data in files.items()},
        )
        file = self._receipt_file(part)
        if file.exists():
            if self._whole_receipt(part, self.location.sizes()) is not None:
                publish_new(file, receipt.to_bytes())
                return receipt
            self._forget(part)
        self._publish_files(files)
        try:
            publish_new(file, receipt.to_bytes())
        except AlreadyExistsError:
            # Another writer, whose device rounds otherwise, made this shard at the same time. The
            # files may be a mixture: what its receipt tells of, or else ours, but all of one.
            if self._holds(self._load_receipt(part)):
                return self._load_receipt(part)
            self._forget(part)
            self._publish_files(files)
            publish_new(file, receipt.to_bytes())
        return receipt

    def _publish_files(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            publish(self.location / name, data)

    def _forget(self, part: str) -> None:
        """Remove a receipt that tells of damaged files, before they are made again."""
        self._receipts.pop(part, None)
        self._receipt_file(part).delete()

    def _holds(self, receipt: Receipt) -> bool:
        """Whether the files are those of the receipt, byte for byte."""
        return all(
            FileRecord.of((self.location / name).read_bytes()) == record
            for name, record in receipt.files.items()
        )

    def _load_receipt(self, part: str) -> Receipt:
        # Receipts never change: each is read once, however often a writer looks around.
        if part not in self._receipts:
            self._receipts[part] = Receipt.load(self._receipt_file(part))
        return self._receipts[part]

    def _whole_receipt(self, part: str, sizes: Mapping[str, int]) -> Receipt | None:
        """The part's receipt if it is sound and its files have the sizes it says."""
        receipt = self._sound_receipt(part, sizes)
        if receipt is None:
            return None
        whole = all(sizes.get(name) == record.num_bytes for name, record in receipt.files.items())
        return receipt if whole else None

    def _sound_receipt(self, part: str, sizes: Mapping[str, int]) -> Receipt | None:
        """The part's receipt if there is one that can be trusted, whatever became of its files."""
        file = self._receipt_file(part)
        if f"receipts/{file.name}" not in sizes:
            return None
        try:
            receipt = self._load_receipt(part)
        except (CorruptionError, InvalidInputError, NotFoundError):
            return None
        if (receipt.part, receipt.fingerprint_digest) != (part, self.fingerprint.digest):
            return None
        return receipt

    def _receipt_file(self, part: str) -> Location:
        return self.location / receipt_path(part)


def has_tokens(location: Location, fingerprint: Fingerprint) -> bool:
    """Whether all that is written before the first shard is there, by its receipt and sizes."""
    receipt = Receipt.load_if_sound(location / "receipts" / f"{TOKENS_PART}.json")
    if receipt is None:
        return False
    sizes = location.sizes()
    return (receipt.part, receipt.fingerprint_digest) == (TOKENS_PART, fingerprint.digest) and all(
        sizes.get(name) == record.num_bytes for name, record in receipt.files.items()
    )


def clear_up(location: Location) -> None:
    """Remove what writers of a cache left, dead ones too: a finished one holds nothing of them."""
    remove_claims(_claims(location))
    remove_abandoned(location)


def _claims(location: Location) -> Location:
    return location / "claims"


def stored_order(store: Store, name: str, fingerprint: Fingerprint) -> IdOrder | None:
    """The order of ids of a cache that was begun; None where it is not there or damaged.

    Raises:
        FingerprintMismatchError: the cache was begun with other settings.
    """
    location = store.cache(name)
    try:
        existing = Fingerprint.load(location / "fingerprint.json")
    except NotFoundError:
        return None
    check_same_fingerprint(existing, fingerprint, f"Cache {name!r} ({location})")
    try:
        return RowReader(location, fingerprint).id_order
    except CorruptionError:
        return None


def _check_input(fingerprint: Fingerprint, tokens: TokenTable, order: IdOrder | None) -> None:
    if (tokens.num_documents, tokens.num_tokens) != (
        fingerprint.num_documents,
        fingerprint.num_tokens,
    ):
        raise InvalidInputError(
            f"The fingerprint has {fingerprint.num_documents} documents and "
            f"{fingerprint.num_tokens} tokens, the token table {tokens.num_documents} and "
            f"{tokens.num_tokens}."
        )
    vocab_size = fingerprint.model.vocab_size
    if tokens.token_ids.min() < 0 or tokens.token_ids.max() >= vocab_size:
        raise InvalidInputError(
            f"The tokens have ids from {tokens.token_ids.min()} to {tokens.token_ids.max()}, "
            f"outside the model's vocabulary of {vocab_size}. "
            "The tokenizer does not belong to this model."
        )
    if (order is None) != (fingerprint.profile == "fast"):
        raise InvalidInputError(
            f"The profile {fingerprint.profile} {'needs an' if order is None else 'takes no'} "
            "order of ids."
        )
    if order is not None:
        shapes = {spec.name: spec.shape for spec in cache_arrays(fingerprint).id_order}
        found = {name: getattr(order, name).shape for name in shapes}
        if found != shapes:
            raise InvalidInputError(
                f"The order of ids has shapes {found}; this fingerprint needs {shapes}."
            )
