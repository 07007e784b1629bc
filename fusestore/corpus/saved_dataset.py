"""Folders that `datasets` wrote by `save_to_disk`, read without that package.

A saved `Dataset` is a folder of Arrow streams; its `state.json` lists them in order, and names the
files that belong to it: others beside them are results that `datasets` cached there. A saved
`DatasetDict` has one such folder per split, and `dataset_dict.json`, which lists the splits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from fusestore.errors import InvalidInputError
from fusestore.storage.location import Location

SPLIT_COLUMN = "split"
"""The column that names the split of each row of a saved `DatasetDict`."""

_STATE, _DICT = "state.json", "dataset_dict.json"
_INFO = ("dataset_info.json", "dataset_infos.json")


_Model = TypeVar("_Model", bound=BaseModel)


class _DataFile(BaseModel):
    filename: str


class _State(BaseModel):
    files: list[_DataFile] = Field(alias="_data_files", min_length=1)


class _Dict(BaseModel):
    splits: list[str]


@dataclass
class SavedDatasets:
    """What the saved datasets among the files of a folder say about these files.

    Attributes:
        descriptions: files that describe a dataset.
        cached: files that lie beside a dataset but are no part of it.
        splits: the split of each file of a `DatasetDict`.
    """

    descriptions: set[str] = field(default_factory=set)
    cached: set[str] = field(default_factory=set)
    splits: dict[str, str] = field(default_factory=dict)


def saved_datasets(root: Location, names: Iterable[str]) -> SavedDatasets:
    """Find the saved datasets among the files below a folder.

    Args:
        root: the folder.
        names: its files, relative to it.

    Raises:
        InvalidInputError: a file of a saved dataset is missing.
    """
    names = set(names)
    saved = SavedDatasets()
    for name in sorted(names):
        folder, _, file = name.rpartition("/")
        prefix = f"{folder}/" if folder else ""
        if file == _STATE and (state := _read(_State, root / name)):
            parts = {prefix + part.filename for part in state.files}
            if missing := sorted(parts - names):
                raise InvalidInputError(
                    f"The saved dataset {root / folder if folder else root} lacks {missing[0]}, "
                    f"which its {_STATE} lists. Copy the whole folder."
                )
            beside = {other for other in names if other.rpartition("/")[0] == folder}
            saved.cached |= {other for other in beside - parts if other.endswith(".arrow")}
        elif file == _DICT and (splits := _read(_Dict, root / name)):
            for split in splits.splits:
                below = f"{prefix}{split}/"
                saved.splits |= {other: split for other in names if other.startswith(below)}
        elif file not in _INFO:
            continue
        saved.descriptions.add(name)
    return saved


def _read(model: type[_Model], location: Location) -> _Model | None:
    """The content of a file, or None if another program wrote it."""
    try:
        return model.model_validate_json(location.read_bytes())
    except ValidationError:
        return None
