"""Making the shards of a fused dataset when they are read.

Making a shard needs Polars, zarr and perhaps obstore, and a process that was *forked* after those
were used hangs in them: such a process is refused. The main process, and workers that were started
by forkserver or spawn, make shards themselves.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusestore.forked import check_not_forked
from fusestore.plugins import expect_plugins, plugin_names

if TYPE_CHECKING:
    from fusestore.fuse.folder import FusedFolder


@dataclass(frozen=True)
class ShardFiller:
    """Makes shards of one fused dataset. Can be pickled; what it opens stays in the process.

    Attributes:
        store: path or URL of the store that holds the inputs.
        storage_options: for the store's filesystem.
        folder: the fused dataset's local folder, which holds its fingerprint.json.
    """

    store: str
    storage_options: tuple[tuple[str, str], ...]
    folder: str

    def __getstate__(self) -> dict[str, Any]:
        return {"fields": self.__dict__, "plugins": plugin_names()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["fields"])
        # A worker has a registry of its own, without the strategies registered by plugins.
        expect_plugins(state["plugins"])

    def __call__(self, shard: int) -> None:
        """Make the shard unless it is there.

        Raises:
            FingerprintMismatchError: an input is not what it was when the dataset was begun.
            CorruptionError: an input is damaged.
            NotFoundError: an input is gone.
            InvalidInputError: this process was forked.
        """
        check_not_forked(f"makes shards of {self.folder}")
        with _LOCK:
            _MAKERS.setdefault(self, ShardMaker(self)).make(shard)


class ShardMaker:
    """Makes shards in this process; what it has read of the inputs stays open.

    Imports what a forked process must not use, when it makes the first one.
    """

    def __init__(self, filler: ShardFiller) -> None:
        self._filler = filler
        self._folder: FusedFolder | None = None

    def make(self, shard: int) -> None:
        """Make the shard unless it is there, and the manifest when it was the last; see above."""
        from fusestore.fuse.begin import is_current, reopen
        from fusestore.storage.location import Location
        from fusestore.store.layout import Store

        store = Store.open(self._filler.store, dict(self._filler.storage_options))
        # An input may have been made anew since it was opened. Opening again says what differs.
        if self._folder is None or not is_current(store, self._folder.plan):
            self._folder = None
            self._folder = reopen(store, Location.parse(self._filler.folder))
        self._folder.fill(shard)
        self._folder.complete()


_LOCK = threading.Lock()
_MAKERS: dict[ShardFiller, ShardMaker] = {}
