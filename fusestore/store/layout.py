"""`Store`: the root folder or URL, and the folders of artifacts below it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fusestore.errors import FusestoreError, InvalidInputError, did_you_mean
from fusestore.storage.foreign_names import is_portable
from fusestore.storage.location import Location

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_name(text: str) -> bool:
    """Whether the text can be an artifact's name; see `check_name`."""
    return _NAME.fullmatch(text) is not None and is_portable(text)


def check_name(name: str) -> str:
    """The name, if it is safe as one component of a path on every storage.

    Raises:
        InvalidInputError: empty, too long, with characters besides letters, digits, `._-`, or a
            name that Windows cannot hold.
    """
    if not is_name(name):
        raise InvalidInputError(
            f"{name!r} cannot be a name: use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit and not ending with '.', 128 characters at most, and "
            "none of Windows's devices (CON, NUL, COM1, …)."
        )
    return name


@dataclass(frozen=True)
class Store:
    """A store's layout. Opening one reads nothing."""

    location: Location

    def __repr__(self) -> str:
        return f"Store({str(self.location)!r})"

    @classmethod
    def open(
        cls,
        target: str | os.PathLike[str] | Location | Store,
        storage_options: Mapping[str, object] | None = None,
    ) -> Store:
        """The store at a path or URL; an open one is returned as it is."""
        if isinstance(target, Store):
            return target
        return cls(Location.parse(target, storage_options))

    def __post_init__(self) -> None:
        """Let no symbolic link below the store lead out of it."""
        object.__setattr__(self, "location", self.location.confined())

    def corpus(self, name: str) -> Location:
        """Folder of a corpus."""
        return self.location / "corpora" / check_name(name)

    def cache(self, name: str) -> Location:
        """Folder of a distribution cache."""
        return self.location / "caches" / check_name(name)

    def vocabulary(self, tokenizer_digest: str) -> Location:
        """Folder of a tokenizer's vocabulary."""
        return self.location / "vocabularies" / tokenizer_digest[:16]

    def vocabulary_map(self, source_digest: str, target_digest: str, method: str) -> Location:
        """Folder of a vocabulary map."""
        name = f"{source_digest[:16]}-{target_digest[:16]}-{check_name(method)}"
        return self.location / "vocabulary_maps" / name

    def alignment(self, name: str) -> Location:
        """Folder of a token alignment."""
        return self.location / "alignments" / check_name(name)

    def fit(self, digest: str) -> Location:
        """Folder of a fit of a learned strategy, by its digest or the first 16 digits."""
        return self.location / "fits" / check_name(digest[:16])

    def fused(self, name: str) -> Location:
        """Folder of a fused dataset."""
        return self.location / "fused" / check_name(name)

    def model(self, name: str) -> Location:
        """Folder of a trained model."""
        return self.location / "models" / check_name(name)

    def names(self, folder: str) -> list[str]:
        """Names of the artifacts in a folder (`corpora`, `caches`, …), complete or not, sorted."""
        return (self.location / folder).list()


def near_names(folder: Location) -> str:
    """A question with the folders beside a missing one that are called almost so, or nothing."""
    with contextlib.suppress(FusestoreError):
        return " ".join(filter(None, ["", did_you_mean(folder.name, folder.parent.list())]))
    return ""
