"""The published schemas: JSON Schema of every manifest and settings file, columns of every table.

`python -m tools.schemas FOLDER` writes them. They are generated from the models in code and
from the docstrings that describe them, so schemas/ says what this version writes, no more.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import BaseModel, Field
from pydantic.json_schema import GenerateJsonSchema

from fusestore.align.manifest import AlignmentFingerprint, AlignmentManifest
from fusestore.align.report.unmatched import ALIGNMENT_SCHEMA, UNMATCHED_SCHEMA
from fusestore.align.vocabulary.stored_map import VocabularyMapManifest
from fusestore.align.vocabulary.vocabulary_map import VocabularyMap
from fusestore.cache.manifest import CacheManifest, Fingerprint
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import DOCUMENTS_SCHEMA
from fusestore.corpus.manifest import CorpusManifest, TokensManifest
from fusestore.errors import InvalidInputError
from fusestore.forecast.forecast import Forecast
from fusestore.fuse.manifest import FusedManifest, FusionPlan, ShardReceipt
from fusestore.fuse.recipe import Recipe
from fusestore.merge.manifest import MergeManifest
from fusestore.store.manifest import Manifest, canonical_json
from fusestore.store.receipts import Receipt
from fusestore.tokenizers.vocabulary_table import VOCABULARY_SCHEMA
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import TrainingManifest
from fusestore.train.settings import TrainSettings
from fusestore.version import FORMAT_VERSION
from fusestore.workflows.fusion_config import FusionConfig

_COMMAND_LINE_KEYS = ("panel", "short", "names", "metavar")
"""Of a field's `json_schema_extra`: they say how its option looks, nothing about its values."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

MANIFESTS: dict[str, tuple[type[Manifest], str]] = {
    "corpus": (CorpusManifest, "corpora/<corpus>/manifest.json"),
    "corpus-receipt": (Receipt, "corpora/<corpus>/receipts/<part>.json"),
    "tokens": (TokensManifest, "corpora/<corpus>/tokens/<tokenizer>/manifest.json"),
    "vocabulary-receipt": (Receipt, "vocabularies/<tokenizer>.json"),
    "cache-fingerprint": (Fingerprint, "caches/<cache>/fingerprint.json"),
    "cache-receipt": (Receipt, "caches/<cache>/receipts/<part>.json"),
    "cache": (CacheManifest, "caches/<cache>/manifest.json"),
    "vocabulary-map": (VocabularyMapManifest, "vocabulary_maps/<map>/manifest.json"),
    "alignment-fingerprint": (AlignmentFingerprint, "alignments/<alignment>/fingerprint.json"),
    "alignment-receipt": (Receipt, "alignments/<alignment>/receipts/<part>.json"),
    "alignment": (AlignmentManifest, "alignments/<alignment>/manifest.json"),
    "fusion-plan": (FusionPlan, "fused/<fused>/recipe.json"),
    "fused-receipt": (ShardReceipt, "fused/<fused>/[local/]receipts/<shard>.json"),
    "fused-shared-receipt": (Receipt, "fused/<fused>/receipts/<part>.json"),
    "fused": (FusedManifest, "fused/<fused>/[local/]manifest.json"),
    "model": (TrainingManifest, "models/<model>/manifest.json"),
    "merged-model": (MergeManifest, "models/<model>/manifest.json"),
    "train-state": (TrainState, "checkpoint/state.json in a training run's local work folder"),
}
"""Schema name → the manifest and the file that holds it, below the store's root.

What stands in brackets may be missing. Where two schemas have one file, each document fits one of
them alone.
"""


class Table(NamedTuple):
    """A Parquet table.

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


def tables() -> dict[str, Table]:
    """Every Parquet table of a store, by name."""
    empty = np.empty(0, np.int32)
    empty_map = VocabularyMap("", "", "mined", "prefix", empty, empty, empty.astype(np.uint8))
    return {
        "documents": Table(
            "corpora/<corpus>/documents.parquet",
            "one document, in corpus order",
            DOCUMENTS_SCHEMA,
            {
                "document": "index of the document in the corpus, from 0",
                "source": "name of the source document it was cut from",
                "segment": "which piece of its source document it is, from 0",
                "split": "name of its split",
                "text": "the text",
                "byte_length": "bytes of the text in UTF-8",
                "digest": "SHA-256 of the text in UTF-8, hexadecimal",
            },
        ),
        "vocabulary": Table(
            "vocabularies/<tokenizer>.parquet",
            "one token id, ascending from 0",
            VOCABULARY_SCHEMA,
            {
                "token_id": "token id",
                "bytes": "the UTF-8 bytes the token stands for; empty for an unused id",
                "kind": "text, byte (byte fallback), special or unused",
                "roles": "what the token does: bos, eos, pad, unk; empty for most",
            },
        ),
        "vocabulary-map": Table(
            "vocabulary_maps/<map>/map.parquet",
            "one token id of the source, ascending from 0",
            empty_map.to_polars().schema,
            {
                "source_id": "token id of the source",
                "target_id": "token id of the target; null where there is none",
                "distance": "edit distance of the two tokens in characters; null without a target",
                "kind": "how the pair was found",
            },
            frozenset({"target_id", "distance"}),
        ),
        "alignment": Table(
            "none: `align.report.unmatched.alignment_table` makes it of the stored arrays",
            "one token of the target, in corpus order",
            ALIGNMENT_SCHEMA,
            {
                "document": "index of the document in the corpus",
                "target_pos": "position of the target's token in its document, from 0",
                "source_pos": "position in the document whose row may supervise it; null for none",
                "kind": "span: equal end offsets; mined: by edit distance alone; none",
            },
            frozenset({"source_pos"}),
        ),
        "unmatched": Table(
            "alignments/<alignment>/unmatched.parquet",
            "one token id that stays unmatched somewhere: by side, then the most frequent first",
            UNMATCHED_SCHEMA,
            {
                "side": "the tokenizer that the id belongs to",
                "token_id": "token id",
                "bytes": "the UTF-8 bytes the token stands for",
                "text": "the same as text; bytes that are no characters as \\xNN",
                "unmatched": "target: occurrences without a source row; source: without a use",
                "total": "occurrences in the corpus",
            },
        ),
    }


def generate() -> dict[str, bytes]:
    """Every file of schemas/ by name, as canonical JSON.

    `<manifest>.json`, `recipe.json`, `fusion.json` and `forecast.json` are JSON Schemas;
    `tables.json` lists the columns of every Parquet table.
    """
    schemas = {name: _manifest_schema(*entry) for name, entry in MANIFESTS.items()}
    schemas["recipe"] = _schema(Recipe, "what is fused, and how: .toml or .json", "validation")
    schemas["forecast"] = _schema(
        Forecast, "what `fusestore forecast --json` prints", "serialization"
    )
    schemas["fusion"] = _fusion_file_schema()
    schemas["tables"] = {name: _columns(table) for name, table in tables().items()}
    return {f"{name}.json": canonical_json(schemas[name]) for name in sorted(schemas)}


class _Generator(GenerateJsonSchema):
    """Takes descriptions from docstrings: the summary, and `Attributes:` for the properties."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ANN401
        """Titles made of names say nothing that the names do not."""
        del schema
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ANN401
        """What fusestore writes has every key, those with a default too."""
        return self.mode == "serialization" or super().field_is_required(field, total)

    def model_schema(self, schema: Any) -> dict[str, Any]:  # noqa: ANN401 - a pydantic-core schema
        result = super().model_schema(schema)
        summary, attributes = _parse_docstring(schema["cls"])
        result["description"] = summary
        for name, content in result["properties"].items():
            if name in attributes:
                content.setdefault("description", attributes[name])
            for key in _COMMAND_LINE_KEYS:
                content.pop(key, None)
        return result


def _schema(model: type[BaseModel], comment: str, mode: Any) -> dict[str, Any]:  # noqa: ANN401
    schema = model.model_json_schema(mode=mode, schema_generator=_Generator)
    return {"$schema": _DIALECT, "$comment": comment, **schema}


def _manifest_schema(manifest: type[Manifest], file: str) -> dict[str, Any]:
    schema = _schema(manifest, file, "serialization")
    schema["required"] = [*schema["required"], "checksum"]
    schema["properties"]["format_version"] |= {"minimum": 1, "maximum": FORMAT_VERSION}
    for nested in schema.get("$defs", {}).values():
        # Only a file carries a checksum, not a manifest inside another.
        nested["properties"].pop("checksum", None)
    return schema


class ModelTable(CaptureSettings):
    """One model and how it is captured; what is not said here stands in [capture].

    Attributes:
        model: folder, hub id, `.gguf` file, or `package:NAME`.
        license: shown when the model is used.
    """

    model: str
    license: str | None = None


class FuseTable(Recipe):
    """What is fused, and into which model's tokens: a recipe, and the dataset's name.

    Attributes:
        name: of the fused dataset.
        target: the model whose tokens are supervised, one of [models]; the source, if it is one.
        corpus: that of [corpus]; need not be given.
        alignment_method, vocabulary_method: those of [align]; need not be given.
    """

    name: str = "fused"


class TrainRunTable(TrainSettings):
    """One training run; what is not said here stands in [train].

    Attributes:
        model: the model to start from, one of [models]; the target unless given.
    """

    model: str = ""


class TrainTable(TrainSettings):
    """Settings shared by all training runs, and the runs by name."""

    runs: dict[str, TrainRunTable] = Field(default_factory=dict)


class FusionFile(FusionConfig):
    """A fusion.toml: everything one fusion needs, from text to trained models.

    Attributes:
        store: folder or URL; may be given by --store instead.
        capture: shared by all models.
        models: by name.
        evaluate_split: split of the corpus on which trained models are scored.
        log_dir: local folder outside the store for TensorBoard logs, a folder in it for each run.
    """

    capture: CaptureSettings = CaptureSettings()
    models: dict[str, ModelTable]  # type: ignore[assignment]
    fuse: FuseTable  # type: ignore[assignment]
    train: TrainTable = TrainTable()  # type: ignore[assignment]


def _fusion_file_schema() -> dict[str, Any]:
    """fusion.toml as people write it, before [capture] and [train] are dealt out.

    That the names in [fuse] and in the runs are among [models] is beyond JSON Schema.
    """
    schema = _schema(FusionFile, "fusion.toml, or the same as .json", "validation")
    schema["required"].remove("store")
    for table in ("ModelTable", "TrainRunTable"):
        # What they leave out is the shared table's value, whatever that is.
        for content in schema["$defs"][table]["properties"].values():
            content.pop("default", None)
    for shared in ("align", "capture", "train"):
        schema["properties"][shared].pop("default")
    return schema


def _parse_docstring(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """The text before `Attributes:`, and the attributes' descriptions, inherited ones included."""
    attributes: dict[str, str] = {}
    summary = ""
    for cls in reversed(model.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel or not cls.__doc__:
            continue
        summary, _, listed = inspect.cleandoc(cls.__doc__).partition("Attributes:\n")
        # An entry begins at the first indent; its further lines are indented deeper.
        for entry in re.split(r"\n(?= {4}\S)", listed.rstrip()):
            names, separator, text = entry.strip().partition(": ")
            if separator:
                attributes |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return " ".join(summary.split()), attributes


def _columns(table: Table) -> dict[str, Any]:
    if list(table.meanings) != table.schema.names():
        raise InvalidInputError(
            f"{table.file} has the columns {table.schema.names()}, but meanings are given for "
            f"{list(table.meanings)}."
        )
    return {
        "file": table.file,
        "row": table.row,
        "columns": [
            {
                "name": name,
                **_type(dtype),
                "nullable": name in table.nullable,
                "meaning": table.meanings[name],
            }
            for name, dtype in table.schema.items()
        ],
    }


def _type(dtype: pl.DataType) -> dict[str, Any]:
    if isinstance(dtype, pl.Enum):
        return {"dtype": "enum", "values": dtype.categories.to_list()}
    if isinstance(dtype, pl.List):
        return {"dtype": "list", "items": _type(dtype.inner.base_type()())["dtype"]}
    return {"dtype": str(dtype).lower()}


def main() -> None:
    """Write every schema into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in generate().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()
