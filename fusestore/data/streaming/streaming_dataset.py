"""A fused dataset as a stream: from any storage, in an exact order, resumable at any sample."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fusestore.data.dataset import FusedDataset
from fusestore.data.shard_cache.flock import check_has_flock
from fusestore.data.shard_cache.job import FetchJob
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.data.streaming.stream import Identity, Stream
from fusestore.data.streaming.stream_order import StreamOrder
from fusestore.data.streaming.stream_reader import FetchingReader, LocalReader, WindowReader
from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.fuse.layout import shared_rows
from fusestore.fuse.manifest import FusedManifest
from fusestore.fuse.window_table import read_window_starts
from fusestore.storage.location import Location
from fusestore.storage.packages import cache_folder
from fusestore.storage.private_folder import private_folder
from fusestore.storage.publish import publish, remove_abandoned
from fusestore.store.copy import check_files_match
from fusestore.store.held_digest import check_digest
from fusestore.store.manifest import MAX_MANIFEST_BYTES, digest_bytes

MANY_WINDOWS = 2**22
"""Windows of which the order takes more memory than 64 MiB."""


class StreamingFusedDataset(Stream):
    """The windows of a fused dataset in the order of `StreamOrder`, epoch after epoch.

    Samples are those of `FusedDataset`; see `Stream` for how they are assigned to ranks and
    workers. Shards are prefetched from the dataset's storage, verified, and kept below `cache_dir`,
    which all processes of the machine share. A local dataset in the local form is read in place.

    Attributes:
        name: its URL or folder, for messages.
        target: digest of the target's tokenizer.
        digest: of the dataset's plan, as `FusedDataset.digest`.
        window_length, vocab_size, num_tokens, top_k: as in `FusedDataset`.
        sampled, whole_documents: likewise.
        made_from: the models whose distributions were fused, with licenses, where they are known.
        order: the order of windows.
        cache_root: folder of the fetched shards of all datasets.
        cache_limit: size limit of this folder in bytes; None: no limit.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Location,
        *,
        storage_options: Mapping[str, object] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        seed: int = 0,
        shuffle_span: int | None = 1024,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        digest: str | None = None,
    ) -> None:
        """Open a complete fused dataset, in the local or the shared form.

        Args:
            url: the dataset's folder: a path, `s3://`, `hf://`, `https://` or any fsspec URL.
            storage_options: of the URL's storage, such as `endpoint_url`; see `storage.options`.
            cache_dir: local folder for fetched shards, to which nobody else may write; by default
                the user's cache.
            cache_limit: size limit in bytes of the fetched shards of all datasets below
                `cache_dir`; None: as much as the disk has.
            seed: of the order.
            shuffle_span: windows that are mixed with each other; a larger span mixes better and
                needs more shards at one time. None: all windows, in the order of
                `FusedDataset.order`; every shard is kept until the end of the epoch.
            batch_size: as for `Stream`, as are the next two.
            rank: of this process.
            world_size: processes that share the stream.
            digest: `checksum` of its manifest (the SHA-256 of its content, not of the file), from
                the dataset's author; every fetched shard is checked against it. A local dataset
                is read once to check every file.

        Raises:
            NotFoundError: the folder holds no complete fused dataset.
            CorruptionError: its manifest, or its table of windows, is damaged, or it is not that of
                the digest; or of more than `MANY_WINDOWS` windows the storage has not the files.
            InvalidInputError: it has no tokens, `cache_limit` is too small for the order, or others
                may write to `cache_dir`.
            UnsupportedPlatformError: it is not local, and this is Windows.
        """
        super().__init__(batch_size, rank, world_size)
        location = Location.parse(url, storage_options).confined()
        content = _read_manifest(location)
        manifest = FusedManifest.from_bytes(content, f"{location}/manifest.json")
        if digest is not None:
            check_digest(digest, manifest.digest, location)
        recipe = manifest.plan.recipe
        self.name = str(location)
        self.digest = manifest.plan.digest
        self.target = manifest.plan.target_digest
        self.num_tokens = manifest.num_tokens
        self.top_k = recipe.top_k
        self.window_length = recipe.window_length
        self.vocab_size = manifest.plan.vocab_size
        self.sampled = manifest.plan.sampled
        self.made_from = manifest.made_from
        self.whole_documents = recipe.packing == "whole"
        if self.num_tokens == 0:
            raise InvalidInputError(
                f"Fused dataset {location} holds no tokens: there is nothing to train on. Fuse a "
                "split with documents."
            )
        self.order = StreamOrder(
            digest=self.digest,
            num_tokens=self.num_tokens,
            window_length=self.window_length,
            # The same in both forms, so that both have the same order.
            rows_per_block=shared_rows(self.num_tokens, recipe.rows_per_shard),
            seed=seed,
            span=shuffle_span,
            starts=read_window_starts(location, manifest) if recipe.has_window_table else None,
        )
        self._layout = ShardLayout.of(manifest)
        in_place = location.is_local and manifest.form == "local"
        base = Path(cache_dir or "").expanduser() if in_place else cache_folder(cache_dir)
        self.cache_root = str(base.absolute() / "stream")
        self.cache_limit = cache_limit
        self._local: FusedDataset | None = None
        if in_place:
            if digest is not None:
                check_files_match(location, manifest.files)
            self._local = FusedDataset(location.path, plan=manifest.plan.model_dump(mode="json"))
            return
        if self.num_windows > MANY_WINDOWS:
            _check_largest_file(location, manifest)
        check_has_flock()
        self._job = FetchJob(
            source=location.url,
            storage_options=location.storage_options,
            root=self.cache_root,
            dataset=digest_bytes(content)[:32],
            shard_bytes=self._layout.num_bytes,
            limit=cache_limit,
        )
        if cache_limit is not None and cache_limit < self.needed_bytes:
            size = self._layout.num_bytes
            mixed = "all" if shuffle_span is None else f"{shuffle_span:,}"
            raise InvalidInputError(
                f"cache_limit={cache_limit:,} bytes is too small: mixing {mixed} windows "
                f"needs up to {self.needed_bytes // size} shards of {size:,} bytes at a time, "
                f"{self.needed_bytes:,} bytes. Raise cache_limit, or lower shuffle_span."
            )
        for folder in (Path(self.cache_root), self._job.folder.path):
            private_folder(folder, link=False)
        remove_abandoned(Location.parse(self._job.folder.path))
        self._job.folder.remove_unfinished()
        publish(Location.parse(self._job.manifest_file), content)

    @property
    def num_windows(self) -> int:
        """Windows of the dataset."""
        return self.order.num_windows

    @property
    def needed_bytes(self) -> int:
        """Bytes of fetched shards that an epoch needs at one time; 0 for a local dataset."""
        if self._local is not None:
            return 0
        # One more shard is fetched while the others are in use.
        shards = self.order.working_set(self._layout.rows_per_shard) + 1
        return shards * self._layout.num_bytes

    def reader(self, epoch: int, start: int) -> WindowReader:
        """See `Stream`."""
        windows = self.order.windows(epoch)
        if self._local is not None:
            return LocalReader(self._local, windows)
        return FetchingReader(self._job, self._layout, self.order, windows, start, self.sampled)

    def place_of(self, window: int, position: int) -> str:
        """See `Stream`."""
        row = self.order.bounds(window)[0] + position
        return f"Row {row:,} in shard {row // self._layout.rows_per_shard:,} of {self.name}"

    def follows(self, seed: int) -> bool:
        """See `Stream`."""
        return self.order.span is None and self.order.seed == seed

    def _identity(self) -> dict[str, Identity]:
        return {
            "dataset": Identity(self.digest, "another fused dataset", is_of_data=True),
            "seed": Identity(self.order.seed, "an order of another seed"),
            "shuffle_span": Identity(self.order.span, "an order of another shuffle_span"),
        }


def _check_largest_file(folder: Location, manifest: FusedManifest) -> None:
    """Check that the storage has as much as the manifest says, before memory is taken for windows.

    Raises:
        CorruptionError: the largest file has another size.
        NotFoundError: it is missing.
    """
    name, record = max(manifest.files.items(), key=lambda item: item[1].num_bytes)
    size = (folder / name).size()
    if size != record.num_bytes:
        raise CorruptionError(
            f"{folder / name} has {size:,} bytes, but the dataset's manifest says "
            f"{record.num_bytes:,}. Do not trust this store, or ask its author to share it again."
        )


def _read_manifest(folder: Location) -> bytes:
    try:
        return (folder / "manifest.json").read_prefix(MAX_MANIFEST_BYTES + 1)
    except NotFoundError as error:
        raise NotFoundError(
            f"No complete fused dataset at {folder}: it has no manifest.json. Give the dataset's "
            "own folder, STORE/fused/NAME; `fusestore fuse` makes one."
        ) from error
