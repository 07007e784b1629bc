"""Arguments and results of the methods of an artifact kind: see `fusestore.store.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fusestore.progress import Progress, Reporter
from fusestore.store.manifest import Manifest
from fusestore.store.shown_table import ShownTable

if TYPE_CHECKING:
    import polars as pl


class Input(NamedTuple):
    """An artifact that another artifact was made from.

    Attributes:
        kind: name of its kind.
        digest: its `ArtifactKind.digest`.
        name: its name at that time, if that is recorded; the digest decides.
        needed: whether the artifact cannot be read without it, so that a copy always includes it.
    """

    kind: str
    digest: str
    name: str = ""
    needed: bool = False


class DocumentSchema(NamedTuple):
    """A JSON document that a kind writes.

    Attributes:
        model: the class that reads and writes it.
        file: its path below the store's root, as in `caches/<cache>/manifest.json`. A part in
            brackets is optional. If two schemas name one file, each document fits only one.
    """

    model: type[Manifest]
    file: str


class TableSchema(NamedTuple):
    """A Parquet table that a kind writes.

    Attributes:
        file: its path below the store's root; "none: …" if it is not stored.
        row: what one row stands for.
        schema: its columns in order.
        meanings: of the columns, one line each.
        nullable: the columns that may hold nulls.
    """

    file: str
    row: str
    schema: pl.Schema
    meanings: Mapping[str, str]
    nullable: frozenset[str] = frozenset()


class View(NamedTuple):
    """What `fusestore show` prints of an artifact.

    Attributes:
        content: printed with `--json`.
        tables: printed without.
        note: printed after the tables.
    """

    content: Any
    tables: Sequence[ShownTable]
    note: str = ""


@dataclass(frozen=True)
class Converted:
    """The amount of data that a conversion wrote at the target."""

    num_files: int
    num_bytes: int


Conversion = Callable[[Progress], Converted]
"""Writes an artifact in another form at the target of a copy."""


class RebuildTools(Protocol):
    """Inputs of a rebuild that come from outside the store.

    Attributes:
        settings: `CaptureSettings`: device, batch size and the like for running a model.
        reporter: receives progress updates.
    """

    settings: Any
    reporter: Reporter

    def tokenizer(self, digest: str) -> Any:  # noqa: ANN401 - a Tokenizer, which is above this
        """The tokenizer of a digest, or of its first 16 digits.

        Raises:
            NotFoundError: no model with this tokenizer was given.
        """

    def model(self, digest: str, tokenizer_digest: str, cache: str) -> Any:  # noqa: ANN401 - a Model
        """The model that a cache was captured from, by the digests of model and tokenizer.

        Raises:
            NotFoundError: this model was not given.
        """
