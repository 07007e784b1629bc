"""Making the shards of a fused dataset when they are read.

Making a shard needs Polars, zarr and perhaps obstore. A process that was *forked* after their first
use hangs in them, so a forked process raises an error instead. The main process, and workers that
were started by forkserver or spawn, make shards themselves.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusestore.forked import check_not_forked
from fusestore.plugins import expect_plugins, plugin_names
from fusestore.storage.shown import shown

if TYPE_CHECKING:
    from fusestore.fuse.folder import FusedFolder


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of one fused dataset. Can be pickled; opened inputs stay in their process.

    Attributes:
        store: path or URL of the store that holds the inputs.
        storage_options: for the store's filesystem.
        folder: the fused dataset's local folder, which holds its fingerprint.json.
    """

    store: str
    storage_options: tuple[tuple[str, str], ...]
    folder: str

    def __repr__(self) -> str:
        return f"ShardMaker({shown(self.store)!r}, folder={self.folder!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"fields": self.__dict__, "plugins": plugin_names()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["fields"])
        # A worker's registry lacks the strategies that plugins register.
        expect_plugins(state["plugins"])

    def __call__(self, shard: int) -> None:
        """Make the shard unless it exists, and the manifest after the last.

        Raises:
            FingerprintMismatchError: an input has changed since the dataset was begun.
            CorruptionError: an input is damaged.
            NotFoundError: an input is missing.
            InvalidInputError: this process was forked.
        """
        check_not_forked(f"makes shards of {self.folder}")
        # Imported when it is used, because a forked process must not import it.
        from fusestore.fuse.begin import is_current, reopen
        from fusestore.storage.location import Location
        from fusestore.store.layout import Store

        with _LOCK:
            store = Store.open(self.store, dict(self.storage_options))
            # An input may have been replaced since it was opened; reopening reports differences.
            folder = _OPENED.pop(self, None)
            if folder is None or not is_current(store, folder.plan):
                folder = reopen(store, Location.parse(self.folder))
            _OPENED[self] = folder
            folder.make_shard(shard)
            folder.complete()


_LOCK = threading.Lock()
_OPENED: dict[ShardMaker, FusedFolder] = {}
"""The datasets of this process, with their opened inputs."""
