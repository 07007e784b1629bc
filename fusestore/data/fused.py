"""`Fused`: the handle of a fused dataset in a store, complete or not."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from fusestore.data.dataset import FusedDataset, open_fused, open_unfinished
from fusestore.errors import FusestoreError, NotFoundError
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    import xarray as xr

    from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
    from fusestore.fuse.recipe import Recipe
    from fusestore.tokenizers.vocabulary import Vocabulary


class Fused:
    """A fused dataset. Making a handle reads nothing; can be pickled.

    Attributes:
        store: holds the dataset's inputs.
        location: the dataset's folder, in the store or, for a remote store, on this machine.
    """

    def __init__(self, store: Store, location: Location) -> None:
        self.store = store
        self.location = location

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.location.name

    @property
    def complete(self) -> bool:
        """Whether no shard is missing; missing shards are made when they are read."""
        return (self.location / "manifest.json").exists()

    @property
    def manifest(self) -> FusedManifest:
        """The manifest of the complete dataset.

        Raises:
            NotFoundError: it is not complete.
            CorruptionError: the manifest is damaged.
        """
        try:
            return FusedManifest.load(self.location / "manifest.json")
        except NotFoundError as error:
            raise NotFoundError(
                f"Fused dataset {self.name!r} in {self.store.location} is not complete, so it has "
                f"no manifest yet. Make the missing shards with `fusestore fuse --name {self.name} "
                "--materialize`."
            ) from error

    @property
    def plan(self) -> FusionPlan:
        """Everything that determines the dataset's bytes.

        Raises:
            NotFoundError: the folder holds no plan.
            CorruptionError: the plan is damaged.
        """
        return FusionPlan.load(self.location / FINGERPRINT_FILE)

    @property
    def recipe(self) -> Recipe:
        """The whole recipe; errors as for `plan`."""
        return self.plan.recipe

    def dataset(self, cache_dir: str | os.PathLike[str] | None = None) -> FusedDataset:
        """The map-style dataset, memory-mapped; see `open_fused` for remote stores and errors.

        Args:
            cache_dir: local folder for a remote dataset.
        """
        if self.location.url == self.store.fused(self.name).url:
            return open_fused(self.store.location, self.name, cache_dir=cache_dir)
        if self.complete:
            return FusedDataset(self.location.path)
        return open_unfinished(self.store.location, self.location, None)

    def stream(self, **options: Any) -> StreamingFusedDataset:  # noqa: ANN401
        """The iterable, resumable dataset, fetched shard by shard into a cache of limited size.

        Args:
            **options: of `StreamingFusedDataset`, such as `cache_limit`; errors as there.
        """
        from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset

        return StreamingFusedDataset(self.location, **options)

    def to_polars(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pl.DataFrame:
        """The fused rows as a table, one line a position; see `FusedDataset.to_polars`."""
        vocabulary = self._vocabulary() if decode else None
        return self.dataset().to_polars(windows, decode=decode, limit=limit, vocabulary=vocabulary)

    def to_arrow(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> pa.Table:
        """The fused rows as Arrow's table, of the extra `notebook`; see `FusedDataset.to_arrow`."""
        vocabulary = self._vocabulary() if decode else None
        return self.dataset().to_arrow(windows, decode=decode, limit=limit, vocabulary=vocabulary)

    def to_xarray(
        self,
        windows: int | range | None = None,
        *,
        decode: bool = False,
        limit: int | None = None,
    ) -> xr.Dataset:
        """The fused rows as xarray's dataset, of the extra `notebook`.

        See `FusedDataset.to_xarray`.
        """
        vocabulary = self._vocabulary() if decode else None
        return self.dataset().to_xarray(windows, decode=decode, limit=limit, vocabulary=vocabulary)

    def _vocabulary(self) -> Vocabulary:
        from fusestore.tokenizers.vocabulary_table import load_vocabulary

        return load_vocabulary(self.store, self.plan.target_digest)

    def _repr_html_(self) -> str | None:
        from fusestore.store.artifact_html import artifact_html

        if self.location.url == self.store.fused(self.name).url:
            return artifact_html(self.store, "fused", self.name)
        # On this machine, made from a remote store, which holds no dataset of this name.
        return self.dataset()._repr_html_() if self.location.exists() else None

    def __repr__(self) -> str:
        start = f"Fused({self.name!r} in {self.store.location}"
        try:
            plan = self.plan
        except NotFoundError:
            return f"{start}: not begun)"
        recipe = plan.recipe
        sources = ", ".join(self._names_of_sources(plan))
        state = "complete" if self.complete else "made when it is read"
        return (
            f"{start}: {recipe.strategy} of {sources} on split {recipe.split!r}, "
            f"{plan.num_tokens:,} target tokens, {state})"
        )

    def _names_of_sources(self, plan: FusionPlan) -> list[str]:
        """Those that the store has now; of a remote store, which would be asked, the plan's."""
        names = [source.cache for source in plan.recipe.sources]
        if self.store.location.is_local:
            with contextlib.suppress(FusestoreError):
                return [
                    name_by_digest(self.store, "cache", each.cache_digest, name)
                    for each, name in zip(plan.inputs, names, strict=True)
                ]
        return names
