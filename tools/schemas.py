"""The published schemas: JSON Schema of every manifest and settings file, columns of every table.

`python -m tools.schemas FOLDER` writes them. They are generated from the models in code and
from the docstrings that describe them, so schemas/ says what this version writes, no more.
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from fusestore.align.report.columns import ShownAlignment
from fusestore.align.report.overview import AlignedCache
from fusestore.cache.document_rows import ShownCacheDocument
from fusestore.cache.manifest import CacheManifest
from fusestore.capture.estimate import CaptureEstimate
from fusestore.capture.fit.fit import ModelFit
from fusestore.capture.kept_summary import KeptSummary
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.manifest import CorpusManifest
from fusestore.corpus.shown_document import ShownDocument
from fusestore.errors import InvalidInputError
from fusestore.forecast.forecast import Forecast
from fusestore.fuse.manifest import FusedState
from fusestore.fuse.recipe import Recipe
from fusestore.interop.export import Exported
from fusestore.merge.manifest import MergeManifest
from fusestore.merge.settings import MergeSettings
from fusestore.report.page.content import StoreReport
from fusestore.report.summary import Summary
from fusestore.store.artifact_types import DocumentSchema, TableSchema
from fusestore.store.details import Details
from fusestore.store.listing import Listing
from fusestore.store.manifest import Manifest, canonical_json
from fusestore.store.registry import kinds
from fusestore.train.checkpoint import TrainState
from fusestore.train.manifest import TrainingManifest
from fusestore.train.settings import TrainSettings
from fusestore.version import FORMAT_VERSION
from fusestore.workflows.comparison import Comparison
from fusestore.workflows.distillation import WrittenFusion
from fusestore.workflows.estimation import FusionEstimate
from fusestore.workflows.fusion_config import FusionConfig
from fusestore.workflows.managing.garbage import Garbage
from fusestore.workflows.managing.removal import Removal
from fusestore.workflows.managing.renaming import Renaming
from fusestore.workflows.managing.tree import Tree
from fusestore.workflows.managing.usage import Usage
from fusestore.workflows.planned_run import PlannedRun
from fusestore.workflows.publishing.run import Published
from fusestore.workflows.repair import Repairs
from fusestore.workflows.sharing.run import Copies
from fusestore.workflows.verification import Verification

_COMMAND_LINE_KEYS = ("panel", "short", "names", "metavar")
"""Of a field's `json_schema_extra`: they say how its option looks, nothing about its values."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

OTHER_DOCUMENTS = {
    "train-state": DocumentSchema(
        TrainState, "checkpoint/state.json in a training run's local work folder"
    )
}
"""Documents that lie in no store."""


OUTPUTS: dict[str, tuple[type, str]] = {
    "output-align": (AlignedCache, "what `fusestore align --json` prints"),
    "output-align-document": (
        ShownAlignment,
        "what `fusestore align --inspect` and `--text` print with --json",
    ),
    "output-fuse": (FusedState, "what `fusestore fuse --json` prints"),
    "output-estimate": (CaptureEstimate, "what `fusestore estimate --json` prints"),
    "output-estimate-fit": (ModelFit, "what `fusestore estimate --fit --json` prints"),
    "output-run": (Summary, "what `fusestore run`, `distill` and `demo` print with --json"),
    "output-run-estimate": (FusionEstimate, "what `fusestore run --estimate --json` prints"),
    "output-distill-dry-run": (
        WrittenFusion,
        "what `fusestore distill` and `demo` print with --dry-run --json",
    ),
    "output-show-corpus-document": (
        ShownDocument,
        "what `fusestore show corpus/NAME --document N --json` prints",
    ),
    "output-ls": (Listing, "what `fusestore ls --json` prints"),
    "output-tree": (Tree, "what `fusestore tree --json` prints"),
    "output-du": (Usage, "what `fusestore du --json` prints"),
    "output-show": (Details, "what `fusestore show --json` prints"),
    "output-show-cache-document": (
        ShownCacheDocument,
        "what `fusestore show cache/NAME --document N --json` prints",
    ),
    "output-report": (StoreReport, "what `fusestore report --json` prints"),
    "output-verify": (Verification, "what `fusestore verify --json` prints"),
    "output-repair": (Repairs, "what `fusestore verify --repair --json` prints"),
    "output-rm": (Removal, "what `fusestore rm --json` prints"),
    "output-mv": (Renaming, "what `fusestore mv --json` prints"),
    "output-gc": (Garbage, "what `fusestore gc --json` prints"),
    "output-copy": (Copies, "what `fusestore push`, `pull` and `sync` print with --json"),
    "output-publish": (Published, "what `fusestore publish --json` prints"),
    "output-export": (Exported, "what `fusestore export --json` prints"),
    "output-compare": (Comparison, "what `fusestore compare --json` prints"),
    "output-run-dry-run": (PlannedRun, "what `fusestore run --dry-run --json` prints"),
}
"""What commands print with --json, by the name of its schema."""


STAGE_OUTPUTS: dict[str, tuple[type[Manifest], str, str]] = {
    "output-corpus": (CorpusManifest, "corpus", "what `fusestore corpus --json` prints"),
    "output-capture": (CacheManifest, "cache", "what `fusestore capture --json` prints"),
    "output-import": (CacheManifest, "cache", "what `fusestore import --json` prints"),
    "output-train": (TrainingManifest, "model", "what `fusestore train --json` prints"),
    "output-merge": (MergeManifest, "model", "what `fusestore merge --json` prints"),
}
"""What stages print with --json: a manifest, the artifact's name, and whether it was made now."""


def documents() -> dict[str, DocumentSchema]:
    """Every JSON document that fusestore writes, by the name of its schema."""
    found = dict(OTHER_DOCUMENTS)
    for kind in kinds():
        found.update(kind.schemas())
    return found


def tables() -> dict[str, TableSchema]:
    """Every Parquet table of a store, by name."""
    return {name: table for kind in kinds() for name, table in kind.tables().items()}


def generate() -> dict[str, bytes]:
    """Every file of schemas/ by name, as canonical JSON.

    All but one are JSON Schemas: of manifests, settings files, and what commands print.
    `tables.json` lists the columns of every Parquet table.
    """
    schemas = {name: _manifest_schema(*entry) for name, entry in documents().items()}
    schemas["recipe"] = _schema(Recipe, "what is fused, and how: .toml or .json", "validation")
    schemas["forecast"] = _schema(
        Forecast, "what `fusestore forecast --json` prints", "serialization"
    )
    schemas |= {name: _output_schema(*entry) for name, entry in OUTPUTS.items()}
    schemas |= {name: _stage_schema(*entry) for name, entry in STAGE_OUTPUTS.items()}
    _add_kept_rows(schemas["output-capture"])
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
        # What is left out where it says nothing need not be there.
        kept = self.mode == "serialization" and "serialization_exclude_if" not in field
        return kept or super().field_is_required(field, total)

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

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:  # noqa: ANN401
        result = super().dataclass_schema(schema)
        summary, attributes = _parse_docstring(schema["cls"])
        result |= {"description": summary, "additionalProperties": False}
        for name, content in result["properties"].items():
            content.setdefault("description", attributes.get(name, ""))
        return result


def _schema(model: type, comment: str, mode: Any) -> dict[str, Any]:  # noqa: ANN401
    schema = TypeAdapter(model).json_schema(mode=mode, schema_generator=_Generator)
    return {"$schema": _DIALECT, "$comment": comment, **schema}


def _output_schema(model: type, comment: str) -> dict[str, Any]:
    schema = _schema(model, comment, "serialization")
    for nested in schema.get("$defs", {}).values():
        # Only a file carries a checksum, not a manifest inside of what is printed.
        nested.get("properties", {}).pop("checksum", None)
    return schema


def _stage_schema(manifest: type[Manifest], key: str, comment: str) -> dict[str, Any]:
    schema = _schema(manifest, comment, "serialization")
    schema["properties"] |= {
        key: {"type": "string", "description": "name of the artifact."},
        "built": {"type": "boolean", "description": "whether it was made by this command."},
    }
    schema["required"] = [*schema["required"], key, "built"]
    return schema


def _add_kept_rows(capture: dict[str, Any]) -> None:
    kept = KeptSummary.model_json_schema(mode="serialization", schema_generator=_Generator)
    what = "what keeping only supervised rows saves; null where all rows are kept."
    capture["properties"]["kept"] = {"anyOf": [kept, {"type": "null"}], "description": what}
    capture["required"].append("kept")


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
    """

    model: str


class FusedDatasetTable(Recipe):
    """One of several fused datasets; what is not said here stands in [fuse].

    Attributes:
        target: the model whose tokens are supervised, one of [models]; the source, if it is one.
        corpus: that of [corpus]; need not be given.
        alignment_method, vocabulary_method: those of [align]; need not be given.
    """


class FuseTable(FusedDatasetTable):
    """What is fused, and into which model's tokens: a recipe, or what several share.

    Attributes:
        name: of the fused dataset; those of `datasets` have names already.
        datasets: several fused datasets by name, in place of one.
    """

    name: str = "fused"
    datasets: dict[str, FusedDatasetTable] = Field(default_factory=dict)


class TrainRunTable(TrainSettings):
    """One training run; what is not said here stands in [train].

    Attributes:
        fused: the fused dataset to train on; needed if there are several.
        model: the model to start from, one of [models]; the fused dataset's target unless given.
    """

    fused: str = ""
    model: str = ""


class TrainTable(TrainSettings):
    """Settings shared by all training runs, and the runs by name."""

    runs: dict[str, TrainRunTable] = Field(default_factory=dict)


class MergeTable(MergeSettings):
    """One merged model. Its base, if the method needs one, is what the runs start from.

    Attributes:
        models: training runs whose models are merged.
    """

    models: tuple[str, ...] = Field(min_length=1)


class FusionFile(FusionConfig):
    """A fusion.toml: everything one fusion needs, from text to trained models.

    Attributes:
        capture: shared by all models.
        models: by name.
        merge: merged models by name.
    """

    capture: CaptureSettings = CaptureSettings()
    models: dict[str, ModelTable]  # type: ignore[assignment]
    fuse: FuseTable  # type: ignore[assignment]
    train: TrainTable = TrainTable()  # type: ignore[assignment]
    merge: dict[str, MergeTable] = Field(default_factory=dict)  # type: ignore[assignment]


def _fusion_file_schema() -> dict[str, Any]:
    """fusion.toml as people write it: what [capture], [fuse] and [train] share stands there once.

    That the names in it are names of other tables is beyond JSON Schema.
    """
    schema = _schema(FusionFile, "fusion.toml, or the same as .json", "validation")
    schema["required"].remove("store")
    fuse, datasets = schema["$defs"]["FuseTable"], schema["$defs"]["FusedDatasetTable"]
    for table in (fuse, datasets):
        table["required"].remove("sources")
    # The sources of one fused dataset, or of each, unless all share them.
    fuse["anyOf"] = [{"required": ["sources"]}, {"required": ["datasets"]}]
    for table in ("ModelTable", "FusedDatasetTable", "TrainRunTable"):
        # What they leave out is the shared table's value, whatever that is.
        for content in schema["$defs"][table]["properties"].values():
            content.pop("default", None)
    for shared in ("align", "capture", "train"):
        schema["properties"][shared].pop("default")
    return schema


def _parse_docstring(model: type) -> tuple[str, dict[str, str]]:
    """The text before `Attributes:`, and the attributes' descriptions, inherited ones included."""
    attributes: dict[str, str] = {}
    summary = ""
    for cls in reversed(model.__mro__):
        if cls in (object, BaseModel) or not cls.__doc__:
            continue
        summary, _, listed = inspect.cleandoc(cls.__doc__).partition("Attributes:\n")
        # An entry begins at the first indent; its further lines are indented deeper.
        for entry in re.split(r"\n(?= {4}\S)", listed.rstrip()):
            names, separator, text = entry.strip().partition(": ")
            if separator:
                attributes |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return " ".join(summary.split()), attributes


def _columns(table: TableSchema) -> dict[str, Any]:
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
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        fields = {field.name: str(field.dtype).lower() for field in dtype.inner.fields}
        return {"dtype": "list", "items": "struct", "fields": fields}
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
