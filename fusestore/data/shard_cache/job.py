"""`FetchJob`: a dataset to fetch, and its folder on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusestore.data.shard_cache.cache_folder import ShardFolder
from fusestore.storage.shown import shown


@dataclass(frozen=True)
class FetchJob:
    """A dataset to fetch, and its folder on this machine. Can be pickled; has no open files.

    Attributes:
        source: path or URL of the fused dataset's folder.
        storage_options: for its filesystem.
        root: folder of all datasets' shards on this machine.
        dataset: digest of the manifest file; names the dataset's folder below the root.
        shard_bytes: size of each fetched shard.
        limit: bytes of all shards below the root; None: no limit.
    """

    source: str
    storage_options: tuple[tuple[str, str], ...]
    root: str
    dataset: str
    shard_bytes: int
    limit: int | None

    def __repr__(self) -> str:
        return f"FetchJob({shown(self.source)!r}, root={self.root!r}, dataset={self.dataset!r})"

    @property
    def folder(self) -> ShardFolder:
        """The folder of its shards."""
        return ShardFolder(Path(self.root), self.dataset, self.shard_bytes, self.limit)

    @property
    def manifest_file(self) -> Path:
        """A copy of the manifest, so that all processes read the same manifest."""
        return self.folder.path / "manifest.json"
