"""A fused dataset as a stream: from any storage, in an exact order, resumable anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from fusestore.data.dataset import FusedDataset
from fusestore.data.stream_order import StreamOrder
from fusestore.data.stream_reader import FetchingReader, LocalReader, WindowReader
from fusestore.data.windows import filler
from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.fetch.job import FetchJob
from fusestore.fetch.layout import ShardLayout
from fusestore.fuse.layout import shared_rows
from fusestore.fuse.manifest import FusedManifest
from fusestore.packages import user_cache_folder
from fusestore.storage.manifest import MAX_MANIFEST_BYTES, digest_bytes
from fusestore.storage.publish import publish
from fusestore.storage.urls import Location


class StreamingFusedDataset(IterableDataset[dict[str, Tensor]]):
    """The windows of a fused dataset in the order of `StreamOrder`, epoch after epoch.

    Samples are those of `FusedDataset`. Shards are fetched ahead from where the dataset lies,
    verified, and kept below `cache_dir`, which all processes of the machine share; a local dataset
    in the local form is read where it is.

    Iterating goes on behind the last sample that was given out, up to the end of the epoch; the
    next iteration is the next epoch. Of W ranks, rank r gets positions r, r + W, r + 2W, … of what
    is left of the epoch. All get equally many: where the epoch ends before the last rank had its
    turn, that rank gets a filler (`window` −1, one position, nothing to learn), so that every
    window comes once an epoch, whatever W is, and no rank waits for another.

    In DataLoader workers the state is not counted: use `StreamingLoader`, which counts what the
    training loop was given, or `set_epoch` before each epoch.

    Attributes:
        digest: of the dataset's plan, as `FusedDataset.digest`.
        window_length, vocab_size, sampled, num_tokens, top_k: as in `FusedDataset`.
        order: which window comes when.
        batch_size: windows per batch of each rank, which several workers must know in order to
            take whole batches in turns; None: not said.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | Location,
        *,
        storage_options: Mapping[str, str] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
        seed: int = 0,
        shuffle_span: int = 1024,
        batch_size: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        """Open a complete fused dataset, in the local or the shared form.

        Args:
            url: the dataset's folder: a path, `s3://`, `hf://`, `https://` or any fsspec URL.
            storage_options: for the fsspec filesystem.
            cache_dir: where fetched shards are kept; by default in the user's cache.
            cache_limit: bytes that the fetched shards of all datasets below `cache_dir` may take;
                None: as much as the disk has.
            seed: of the order.
            shuffle_span: windows that are mixed with each other; more mix better and need more
                shards at one time.
            batch_size: as given to the DataLoader; needed for more than one worker.
            rank: of this process, below `world_size`; both are by default those of
                torch.distributed, else the variables RANK and WORLD_SIZE.
            world_size: processes that share the stream.

        Raises:
            NotFoundError: no complete fused dataset is there.
            CorruptionError: its manifest is damaged.
            IncompatibleError: its windows are packed by document.
            InvalidInputError: it has no tokens; or `cache_limit` is below what the order needs.
        """
        location = Location.parse(url, storage_options)
        content = _read_manifest(location)
        manifest = FusedManifest.from_bytes(content, f"{location}/manifest.json")
        recipe = manifest.plan.recipe
        self.digest = manifest.plan.digest
        self.num_tokens = manifest.num_tokens
        self.top_k = recipe.top_k
        self.window_length = recipe.window_length
        self.vocab_size = manifest.plan.vocab_size
        self.sampled = manifest.plan.sampled
        if self.num_tokens == 0:
            raise InvalidInputError(
                f"Fused dataset {location} holds no tokens: there is nothing to train on. Fuse a "
                "split with documents."
            )
        if recipe.packing != "stream":
            raise IncompatibleError(
                f"Fused dataset {location} has packing {recipe.packing!r}; only datasets of "
                "packing 'stream' can be streamed. Read it with open_fused, or fuse it again."
            )
        if batch_size is not None and batch_size < 1:
            raise InvalidInputError(f"batch_size={batch_size}: expected 1 or more.")
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (world_size or 1):
            raise InvalidInputError(
                f"rank={rank}, world_size={world_size}: give both, with 0 ≤ rank < world_size, or "
                "none."
            )
        self.batch_size = batch_size
        self._place = None if rank is None or world_size is None else (rank, world_size)
        self.order = StreamOrder(
            digest=self.digest,
            num_tokens=self.num_tokens,
            window_length=self.window_length,
            # The same in both forms, so that the order is.
            rows_per_block=shared_rows(self.num_tokens, recipe.rows_per_shard),
            seed=seed,
            span=shuffle_span,
        )
        self._layout = ShardLayout.of(manifest)
        self._epoch = 0
        self._position = 0
        self._local: FusedDataset | None = None
        if location.is_local and manifest.form == "local":
            self._local = FusedDataset(location.path)
            return
        base = (Path(cache_dir) if cache_dir is not None else user_cache_folder()).expanduser()
        self._job = FetchJob(
            source=location.url,
            storage_options=location.storage_options,
            root=str(base.absolute() / "stream"),
            dataset=digest_bytes(content)[:32],
            shard_bytes=self._layout.num_bytes,
            limit=cache_limit,
        )
        self._check_limit(cache_limit)
        publish(Location.parse(self._job.manifest_file), content)

    def __len__(self) -> int:
        """Samples of one rank in an epoch, fillers included."""
        return -(-self.order.num_windows // self.place()[1])

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker has no torch.distributed to ask.
        return {**self.__dict__, "_place": self.place()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        numbers, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if workers > 1 and self.batch_size is None:
            raise InvalidInputError(
                f"{workers} workers would put other windows together than one does. Use "
                "fusestore.data.StreamingLoader, or give StreamingFusedDataset the batch_size that "
                "the DataLoader has."
            )
        rank, world_size = self.place()
        epoch, start = self._epoch, self._position
        windows = self.order.windows(epoch)
        left = -(-(len(windows) - start) // world_size)
        batch_size = self.batch_size or 1
        mine = (n for n in range(left) if n // batch_size % workers == numbers)
        with self._reader(windows, start) as reader:
            for number in mine:
                position = start + number * world_size + rank
                ended = position >= len(windows)
                sample = (
                    filler(self.top_k, sampled=self.sampled) if ended else reader.sample(position)
                )
                if worker is None:
                    self.seek(epoch, start + (number + 1) * world_size)
                yield sample

    def place(self) -> tuple[int, int]:
        """Rank and world size of this process."""
        if self._place is not None:
            return self._place
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        if epoch < 0:
            raise InvalidInputError(f"epoch={epoch}: expected 0 or more.")
        self.seek(epoch, 0)

    def seek(self, epoch: int, position: int) -> None:
        """Go to a position of all ranks together; behind the last one begins the next epoch."""
        ended = position >= self.order.num_windows
        self._epoch, self._position = (epoch + 1, 0) if ended else (epoch, position)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; the same on every rank, and good for any number of ranks."""
        return {
            "dataset": self.digest,
            "seed": self.order.seed,
            "shuffle_span": self.order.span,
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where `state_dict` was taken.

        Raises:
            IncompatibleError: the state is of another dataset or another order.
            InvalidInputError: it is no state.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(own):
            raise InvalidInputError(f"Not the state of a stream: {state!r:.200}.")
        for key, meaning in (
            ("dataset", "another fused dataset"),
            ("seed", "an order of another seed"),
            ("shuffle_span", "an order of another shuffle_span"),
        ):
            if state[key] != own[key]:
                raise IncompatibleError(
                    f"The state is of {meaning}: {key} is {state[key]!r}, this stream has "
                    f"{own[key]!r}. Open the stream it was taken of, or begin a new one."
                )
        epoch, position = state["epoch"], state["position"]
        if not all(type(value) is int for value in (epoch, position)) or not (
            epoch >= 0 and 0 <= position < self.order.num_windows
        ):
            raise InvalidInputError(
                f"Not the state of a stream: epoch {epoch!r}, position {position!r} of "
                f"{self.order.num_windows} windows."
            )
        self.seek(epoch, position)

    def _reader(self, windows: npt.NDArray[np.int64], start: int) -> WindowReader:
        if self._local is not None:
            return LocalReader(self._local, windows)
        return FetchingReader(self._job, self._layout, self.order, windows, start, self.sampled)

    def _check_limit(self, limit: int | None) -> None:
        # One more is on its way while the others are in use.
        needed = (self.order.working_set(self._layout.rows_per_shard) + 1) * self._layout.num_bytes
        if limit is not None and limit < needed:
            raise InvalidInputError(
                f"cache_limit={limit:,} bytes is too small: mixing {self.order.span:,} windows "
                f"needs up to {needed // self._layout.num_bytes} shards of "
                f"{self._layout.num_bytes:,} bytes at a time, {needed:,} bytes. Raise it, or lower "
                "shuffle_span."
            )


def _read_manifest(folder: Location) -> bytes:
    try:
        return (folder / "manifest.json").read_prefix(MAX_MANIFEST_BYTES + 1)
    except NotFoundError as error:
        raise NotFoundError(
            f"No complete fused dataset at {folder}: it has no manifest.json. Give the dataset's "
            "own folder, STORE/fused/NAME; `fusestore fuse` makes one."
        ) from error
