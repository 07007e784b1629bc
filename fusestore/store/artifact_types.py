"""What the methods of an artifact kind take and give: see `fusestore.store.registry`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fusestore.progress import Progress, Reporter
from fusestore.store.manifest import Manifest

if TYPE_CHECKING:
    import polars as pl


class Input(NamedTuple):
    """Something an artifact was made from.

    Attributes:
        kind: name of its kind.
        digest: what `ArtifactKind.digest` of that kind gives for it.
        name: the name it had then, where it is known; the digest decides.
        needed: whether nothing can be read without it, so that a copy always brings it along.
    """

    kind: str
    digest: str
    name: str = ""
    needed: bool = False


class DocumentSchema(NamedTuple):
    """A JSON document that a kind writes.

    Attributes:
        model: the class that reads and writes it.
        file: where it lies below the store's root, as in `caches/<cache>/manifest.json`. What
            stands in brackets may be missing. Where two documents have one file, each document
            fits one of them alone.
    """

    model: type[Manifest]
    file: str


class TableSchema(NamedTuple):
    """A Parquet table that a kind writes.

    Attributes:
        file: where it lies below the store's root; "none: …" where it is not stored.
        row: what one row is.
        schema: its columns in order.
        meanings: of the columns, one line each.
        nullable: the columns that may hold nulls.
    """

    file: str
    row: str
    schema: pl.Schema
    meanings: Mapping[str, str]
    nullable: frozenset[str] = frozenset()


class ShownTable(NamedTuple):
    """A table for people: its title, its columns and its rows."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


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
    """What a conversion wrote at the target."""

    num_files: int
    num_bytes: int


Conversion = Callable[[Progress], Converted]
"""Writes an artifact in another form at the target of a copy."""


class RebuildTools(Protocol):
    """What rebuilding may need from outside the store.

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
        """The model of a digest with the tokenizer of another, which a cache was captured from.

        Raises:
            NotFoundError: this model was not given.
        """
