"""Writes a distribution cache, in any order of shards and over any number of runs.

Order on disk: the fingerprint; the order of ids, metadata and tokens with their receipt; for each
shard its files and then its receipt; the manifest when nothing is missing. A run may be killed at
any moment; the next run makes the shards without a receipt. Several writers at once divide the
shards by leases (`store.leases`). Equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.layout import cache_arrays, encode_rows
from fusestore.cache.manifest import (
    TOKENS_PART,
    Audit,
    CacheManifest,
    Fingerprint,
    content_digest,
)
from fusestore.cache.row_reader import RowReader
from fusestore.cache.rows import Rows
from fusestore.cache.shard_files import ShardFiles
from fusestore.errors import (
    AlreadyExistsError,
    CorruptionError,
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NotFoundError,
)
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_new, remove_abandoned
from fusestore.store.arrays import array_metadata, encode_shard, group_metadata
from fusestore.store.fingerprints import check_same_fingerprint, write_fingerprint
from fusestore.store.layout import Store
from fusestore.store.leases import LEASE_FOLDER, remove_leases, share_shards
from fusestore.store.licenses import License
from fusestore.store.receipts import FileRecord, Receipt, receipt_path, shard_part
from fusestore.tokenizers.token_table import TokenTable


class CacheWriter:
    """Made by `create`.

    Attributes:
        reader: reads the rows of shards that are written.
        num_rows_finished: rows of the shards that were finished at the last look.
        redo: shards that count as missing until they are written, even if they exist; each with
            the receipt that the new bytes must match, or None.
    """

    def __init__(
        self,
        location: Location,
        fingerprint: Fingerprint,
        tokens: TokenTable,
        order: IdOrder | None,
        kept: KeptRows,
    ) -> None:
        self.location = location
        self.fingerprint = fingerprint
        self.plan = fingerprint.plan
        self.reader = RowReader(location, fingerprint)
        self._arrays = cache_arrays(fingerprint)
        self._tokens = tokens
        self._order = order
        self._kept = kept
        self._files = ShardFiles(location, fingerprint.digest)
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
        kept: KeptRows | None = None,
    ) -> CacheWriter:
        """Begin a cache, or continue one of the same fingerprint.

        Args:
            store: receives the cache.
            name: the cache's name.
            fingerprint: what the content depends on.
            tokens: the tokens that the model reads.
            order: the numbering of ids; None in the profile `fast`. A cache that was begun has
                one already: see `stored_order`.
            kept: which tokens have a row; None for all.

        Raises:
            InvalidInputError: fingerprint, tokens, order and kept rows do not fit each other.
            FingerprintMismatchError: the cache was begun with other settings.
        """
        kept = KeptRows.all(tokens.num_tokens) if kept is None else kept
        _check_input(fingerprint, tokens, order, kept)
        location = store.cache(name)
        write_fingerprint(location, fingerprint, f"Cache {name!r}")
        remove_abandoned(location)
        writer = cls(location, fingerprint, tokens, order, kept)
        writer._write_tokens()
        return writer

    @property
    def complete(self) -> bool:
        """Whether the cache is finished."""
        return (self.location / "manifest.json").exists()

    def missing_shards(self) -> list[int]:
        """Shards without a receipt, or with files that do not match it in size."""
        finished = set(self.finished_shards())
        return [shard for shard in range(len(self.plan)) if shard not in finished]

    def lease_shards(
        self, *, first: int | None = None, waiting: Callable[[int], None] | None = None
    ) -> AbstractContextManager[Iterator[int]]:
        """Share the missing shards with every other writer of this cache: see `share_shards`."""
        return share_shards(
            self.location, self.finished_shards, len(self.plan), first=first, waiting=waiting
        )

    def finished_shards(self) -> list[int]:
        """Shards with a receipt and files of the right sizes, by any writer."""
        sizes = self.location.sizes()
        finished = [
            shard
            for shard in range(len(self.plan))
            if shard not in self.redo
            and self._files.whole_receipt(shard_part(shard), sizes) is not None
        ]
        bounds = [self.plan.bounds(shard) for shard in finished]
        self.num_rows_finished = sum(stop - start for start, stop in bounds)
        return finished

    def write_shard(self, shard: int, rows: Rows) -> Receipt:
        """Publish one shard: its files, then its receipt.

        Args:
            shard: its number.
            rows: all its rows, in order.

        Raises:
            InvalidInputError, NonFiniteError: the rows are not valid; nothing was written.
            AlreadyExistsError: the shard was written with other content.
            IncompatibleError: the shard is made again, and its bytes differ from the old ones.
        """
        start, stop = self.plan.bounds(shard)
        if len(rows) != stop - start:
            raise InvalidInputError(
                f"Shard {shard} takes {stop - start} rows, {start} to {stop}, but was given "
                f"{len(rows)}."
            )
        token_ids = self._tokens.token_ids[self._kept.tokens(start, stop)]
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
                    f"The new bytes of shard {shard} of {self.location} differ from the captured "
                    "ones: this device, batch size or version rounds in another way. The shard was "
                    "not changed. Repair it with the device, batch size and version that captured "
                    "it, or capture the whole cache again under another name."
                )
            self._files.forget(part)
        receipt = self._files.publish(part, start, stop, files)
        self.redo.pop(shard, None)
        return receipt

    def finish(
        self,
        scores: Mapping[str, float],
        skipped_documents: Sequence[int],
        model_spec: str | None = None,
        audit: Audit | None = None,
        model_license: License | None = None,
    ) -> CacheManifest:
        """Write the manifest, after which the cache can be opened.

        Args:
            scores: sums over the corpus, by name.
            skipped_documents: corpus indices of documents with `blank_rows`.
            model_spec: opens the model on any machine; None for a folder. If several writers have
                different specs, audits or licenses, the first writer to finish decides.
            audit: of the rows, if there was one.
            model_license: if it is known.

        Raises:
            InvalidInputError: a shard is missing.
            AlreadyExistsError: the cache was finished before with other scores or skipped
                documents.
        """
        sizes = self.location.sizes()
        parts = [TOKENS_PART, *(shard_part(shard) for shard in range(len(self.plan)))]
        receipts: list[Receipt] = []
        for part in parts:
            receipt = self._files.whole_receipt(part, sizes)
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
            audit=audit,
            license=model_license,
        )
        file = self.location / "manifest.json"
        try:
            manifest.save(file)
        except AlreadyExistsError:
            existing = CacheManifest.load(file)
            described = {"model_spec": model_spec, "audit": audit, "license": model_license}
            if existing.model_copy(update=described) != manifest:
                raise
            return existing
        return manifest

    def _write_tokens(self) -> None:
        arrays, tokens, order = self._arrays, self._tokens, self._order
        attributes = {"kind": "cache", "format_version": self.fingerprint.format_version}
        encoders = {"zarr.json": partial(group_metadata, {"fusestore": attributes})}
        encoders |= {
            f"{spec.name}/zarr.json": partial(array_metadata, spec)
            for spec in (*arrays.per_shard, *arrays.fixed)
        }
        values: tuple[npt.NDArray[Any], ...] = (
            tokens.token_ids,
            tokens.end_offsets,
            tokens.document_offsets,
        )
        if arrays.row_runs:
            values += (self._kept.runs,)
        if order is not None:
            values += (order.rank_to_id, order.token_class, order.class_order)
        for spec, array in zip(arrays.fixed, values, strict=True):
            for shard in range(spec.num_files):
                rows = array[slice(*spec.rows_of(shard))]
                encoders[spec.file_name(shard)] = partial(encode_shard, spec, shard, rows)
        files = _EncodedFiles(encoders)
        sizes = self.location.sizes()
        receipt = self._files.sound_receipt(TOKENS_PART, sizes)
        if receipt is None:
            self._settle_order(files, sizes)
        elif receipt.files != {name: FileRecord.of(data) for name, data in files.items()}:
            raise FingerprintMismatchError(
                f"{self.location} holds other tokens or another order of ids than this run has, "
                "under the same fingerprint. Capture under another name, or delete it."
            )
        if self._files.whole_receipt(TOKENS_PART, sizes) is None:
            self._files.publish(TOKENS_PART, 0, self.fingerprint.num_tokens, files)

    def _settle_order(self, files: Mapping[str, bytes], sizes: Mapping[str, int]) -> None:
        """Write the order of ids, which every shard depends on, create-only.

        So the first of several writers decides the order, even if its receipt is not written yet or
        was lost. If the order is lost too, existing shards cannot be decoded and are made again.
        The shards of a complete cache stay, because its manifest proves whether this order is the
        one they were written with.
        """
        names = [spec.file_name(0) for spec in self._arrays.id_order]
        if any(name not in sizes for name in names) and not self.complete:
            for shard in range(len(self.plan)):
                if receipt_path(shard_part(shard)) in sizes:
                    self._files.forget(shard_part(shard))
        for name in names:
            try:
                publish_new(self.location / name, files[name])
            except AlreadyExistsError as error:
                raise FingerprintMismatchError(
                    f"{self.location} was begun with another order of ids, by a writer on a device "
                    "that rounds in another way. Run the same command again to continue with that "
                    "order; if that fails too, delete this cache."
                ) from error


class _EncodedFiles(Mapping[str, bytes]):
    """Files by path, each encoded whenever it is read: memory holds one of a large corpus."""

    def __init__(self, encoders: Mapping[str, Callable[[], bytes]]) -> None:
        self._encoders = encoders

    def __getitem__(self, path: str) -> bytes:
        return self._encoders[path]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._encoders)

    def __len__(self) -> int:
        return len(self._encoders)


def has_tokens(location: Location, fingerprint: Fingerprint) -> bool:
    """Whether the tokens part, which precedes the shards, is whole by its receipt and sizes."""
    files = ShardFiles(location, fingerprint.digest)
    return files.whole_receipt(TOKENS_PART, location.sizes()) is not None


def clear_up(location: Location) -> None:
    """Remove leases and temporary files of all writers from a finished cache."""
    remove_leases(_leases(location))
    remove_abandoned(location)


def _leases(location: Location) -> Location:
    return location / LEASE_FOLDER


def stored_order(store: Store, name: str, fingerprint: Fingerprint) -> IdOrder | None:
    """The order of ids of a cache that was begun; None if it is missing or damaged.

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


def _check_input(
    fingerprint: Fingerprint, tokens: TokenTable, order: IdOrder | None, kept: KeptRows
) -> None:
    if (tokens.num_documents, tokens.num_tokens) != (
        fingerprint.num_documents,
        fingerprint.num_tokens,
    ):
        raise InvalidInputError(
            f"The fingerprint has {fingerprint.num_documents} documents and "
            f"{fingerprint.num_tokens} tokens, the token table {tokens.num_documents} and "
            f"{tokens.num_tokens}."
        )
    num_runs = 1 if fingerprint.kept is None else fingerprint.kept.num_runs
    if (kept.num_rows, len(kept.runs)) != (fingerprint.num_rows, num_runs):
        raise InvalidInputError(
            f"The fingerprint has {fingerprint.num_rows} rows in {num_runs} runs, but "
            f"{kept.num_rows} rows in {len(kept.runs)} runs are to be kept."
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
        actual = {name: getattr(order, name).shape for name in shapes}
        if actual != shapes:
            raise InvalidInputError(
                f"The order of ids has shapes {actual}; this fingerprint needs {shapes}."
            )
