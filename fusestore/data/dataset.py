"""A fused dataset as a map-style torch dataset over packed windows, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusestore.data.mapped import MappedArray
from fusestore.errors import CorruptionError, FormatVersionError, InvalidInputError, NotFoundError
from fusestore.packages import user_cache_folder
from fusestore.storage.manifest import manifest_content
from fusestore.storage.publish import TEMPORARY_PREFIX
from fusestore.storage.urls import Location

_NO_DISTILLATION = 0
"""Value of `kind` where a position has no fused distribution."""

_ROWS_PER_SCAN = 1 << 18


class FusedDataset(Dataset[dict[str, Tensor]]):
    """Window i is target tokens `[i · window_length, (i + 1) · window_length)`, fewer at the end.

    Each sample: `input_ids` int32 [l], `next_ids` int32 [l] (−100: none), `fused_ids` int32
    [l, k], `fused_logprobs` float32 [l, k] (−inf: unused entry), `fused_tail` float32 [l],
    `fused_mask` bool [l] (whether the position is distilled), `fused_sampled` bool [] (whether
    rows are samples), `window` int64 []. Widths that losses need are `fusestore.data.collate`'s
    work.

    Files are mapped lazily in each process, so the dataset can be pickled and used by any number
    of DataLoader workers, forked or spawned.

    Attributes:
        folder: the local folder.
        digest: SHA-256 of the dataset's manifest, hexadecimal.
        manifest: the manifest's content.
        window_length: tokens per window.
        vocab_size: tokens of the target's tokenizer.
        sampled: whether rows of any source are samples; see docs/training.md.
        num_tokens: T.
        top_k: entries per fused row.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open a local fused dataset.

        Raises:
            NotFoundError: no complete fused dataset is here.
            CorruptionError: its arrays do not belong together.
            InvalidInputError: it has no tokens.
        """
        self.folder = Path(folder)
        content = _read_manifest(Location.parse(self.folder))
        self.digest = hashlib.sha256(content).hexdigest()
        self.manifest: dict[str, Any] = json.loads(content)
        self.window_length = int(self.manifest["plan"]["recipe"]["window_length"])
        self.vocab_size = int(self.manifest["plan"]["vocab_size"])
        self.sampled = bool(self.manifest["plan"]["sampled"])
        names = ("input_ids", "next_ids", "ids", "logprobs", "tail", "kind", "document")
        self._arrays = {name: MappedArray(self.folder / name) for name in names}
        rows = {name: len(array) for name, array in self._arrays.items()}
        if (
            len(set(rows.values())) != 1
            or self._arrays["ids"].shape != self._arrays["logprobs"].shape
        ):
            raise CorruptionError(
                f"The arrays of {self.folder} differ in length: {rows}. Fuse it again."
            )
        self.num_tokens = rows["input_ids"]
        self.top_k = self._arrays["ids"].shape[1]
        if self.num_tokens == 0 or self.window_length < 1:
            raise InvalidInputError(
                f"Fused dataset {self.folder} holds {self.num_tokens} tokens in windows of "
                f"{self.window_length}: there is nothing to train on. Fuse a split with documents."
            )

    def __len__(self) -> int:
        """Windows."""
        return -(-self.num_tokens // self.window_length)

    def __getitem__(self, window: int) -> dict[str, Tensor]:
        start, stop = self._bounds(window)
        arrays = self._arrays
        return {
            "input_ids": torch.from_numpy(arrays["input_ids"].read(start, stop)),
            "next_ids": torch.from_numpy(arrays["next_ids"].read(start, stop)),
            "fused_ids": torch.from_numpy(arrays["ids"].read(start, stop)),
            "fused_logprobs": torch.from_numpy(arrays["logprobs"].read(start, stop)),
            "fused_tail": torch.from_numpy(arrays["tail"].read(start, stop)),
            "fused_mask": torch.from_numpy(arrays["kind"].read(start, stop) != _NO_DISTILLATION),
            "fused_sampled": torch.tensor(self.sampled),
            "window": torch.tensor(window % len(self)),
        }

    def __getitems__(self, windows: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several windows, for a DataLoader's batch."""
        return [self[window] for window in windows]

    def documents(self, window: int) -> list[int]:
        """Corpus document indices that the window touches, rising."""
        return [int(i) for i in np.unique(self._arrays["document"].read(*self._bounds(window)))]

    def largest_token_id(self) -> int:
        """The largest token id anywhere in the dataset; reads all ids once."""
        largest = 0
        for start in range(0, self.num_tokens, _ROWS_PER_SCAN):
            stop = min(start + _ROWS_PER_SCAN, self.num_tokens)
            for name in ("input_ids", "next_ids", "ids"):
                largest = max(largest, int(self._arrays[name].read(start, stop).max(initial=0)))
        return largest

    def _bounds(self, window: int) -> tuple[int, int]:
        count = len(self)
        if not -count <= window < count:
            raise IndexError(f"Window {window} of a fused dataset with {count} windows.")
        start = (window % count) * self.window_length
        return start, min(start + self.window_length, self.num_tokens)


def open_fused(
    store: str | os.PathLike[str] | Location,
    name: str,
    storage_options: Mapping[str, str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FusedDataset:
    """Open fused dataset `name` of a store; a remote one is first copied to this machine.

    Args:
        store: folder or URL of the store.
        name: of the fused dataset.
        storage_options: for the fsspec filesystem of a remote store.
        cache_dir: where copies of remote datasets are kept, one folder per manifest digest;
            by default below fusestore's folder in the user's cache. Unused for local stores.

    Raises:
        NotFoundError: there is no such dataset, or it is not complete.
    """
    source = Location.parse(store, storage_options) / "fused" / name
    if source.is_local:
        return FusedDataset(source.path)
    digest = hashlib.sha256(_read_manifest(source)).hexdigest()
    base = Path(cache_dir) if cache_dir is not None else user_cache_folder()
    folder = base.expanduser().absolute() / "fused" / digest
    if not folder.exists():
        _download(source, folder)
    return FusedDataset(folder)


def _read_manifest(folder: Location) -> bytes:
    try:
        content = (folder / "manifest.json").read_bytes()
    except NotFoundError as error:
        raise NotFoundError(
            f"No complete fused dataset at {folder}: it has no manifest.json. Make it with "
            "`fusestore fuse`; an interrupted fusion goes on where it stopped."
        ) from error
    try:
        plan = manifest_content(content, f"{folder}/manifest.json")["plan"]
        int(plan["recipe"]["window_length"]), int(plan["vocab_size"]), bool(plan["sampled"])
    except FormatVersionError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"{folder}/manifest.json is not the manifest of a fused dataset: {error!r}."
        ) from error
    return content


def _download(source: Location, folder: Path) -> None:
    """Copy the remote folder; `folder` appears whole or not at all."""
    partial = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name[:16]}-{os.urandom(4).hex()}")
    try:
        for name in source.list_recursive():
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((source / name).read_bytes())
        try:
            partial.rename(folder)
        except OSError:
            # Another process of this machine was faster, with the same content.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
