"""`FusionConfig`: what one fusion.toml says. See examples/demo.toml for a whole one."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fusestore.align.kinds import AlignmentMethod
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.manifest import Frozen
from fusestore.store.settings_file import parse_settings, read_settings_file
from fusestore.train.settings import TrainSettings


class CorpusConfig(Frozen):
    """The text, its splits, and how long a document may be."""

    name: str = "corpus"
    inputs: tuple[str, ...] = Field(min_length=1)
    text_column: str = "text"
    split_column: str | None = None
    held_out_fraction: float | None = Field(default=None, gt=0, lt=1)
    held_out_pattern: tuple[str, ...] = ()
    max_length: int = Field(default=1024, ge=8)
    max_documents: dict[str, int] = Field(default_factory=dict)
    max_bytes: dict[str, int] = Field(default_factory=dict)
    sample_seed: int | None = None


class AlignConfig(Frozen):
    """How tokens and vocabularies are aligned."""

    method: AlignmentMethod = "hybrid"
    vocabulary: Literal["mined", "exact", "prefix", "statistical"] = "mined"


class FuseConfig(Frozen):
    """What is fused, and into which model's tokens."""

    name: str = "fused"
    target: str
    sources: tuple[str, ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()
    split: str = "train"
    strategy: str = "mince"
    score: Literal["bits_per_byte", "aligned_ce", "token_ce"] = "bits_per_byte"
    granularity: Literal["document", "window", "token"] = "document"
    kinds: tuple[Literal["span", "mined"], ...] = ("span",)
    unaligned: Literal["skip", "label", "target", "fusellm"] = "skip"
    top_k: int = Field(default=32, ge=1)
    window_length: int = Field(default=1024, ge=2)
    packing: Literal["stream", "document"] = "stream"
    rows_per_shard: int = Field(default=65_536, ge=1)


class ModelConfig(Frozen):
    """One model: what it is and how it is captured."""

    model: str
    licence: str | None = None
    capture: CaptureSettings


class TrainConfig(Frozen):
    """One training run."""

    model: str
    settings: TrainSettings


class FusionConfig(Frozen):
    """Everything one fusion needs, from text to trained models."""

    store: str
    corpus: CorpusConfig
    models: dict[str, ModelConfig]
    align: AlignConfig = AlignConfig()
    fuse: FuseConfig
    train: dict[str, TrainConfig] = Field(default_factory=dict)
    evaluate_split: str | None = None
    log_dir: str | None = None

    @property
    def captured(self) -> list[str]:
        """Models whose distributions the fusion needs, in the order of the file."""
        needed = set(self.fuse.sources)
        if self.fuse.unaligned == "target":
            needed.add(self.fuse.target)
        return [name for name in self.models if name in needed]

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = ", ".join(self.models)
        wanted = {self.fuse.target, *self.fuse.sources, *(run.model for run in self.train.values())}
        for name in sorted(wanted - set(self.models)):
            raise ValueError(f"model {name!r} is not among [models]: {known}")
        if self.fuse.weights and len(self.fuse.weights) != len(self.fuse.sources):
            raise ValueError("fuse.weights needs one number for each of fuse.sources")
        return self


def load_config(location: Location, store: str | None = None) -> FusionConfig:
    """Read a fusion.toml.

    Shared defaults stand in `[capture]` and `[train]`; `[models.NAME]` and `[train.runs.NAME]`
    override them.

    Args:
        location: the file.
        store: used instead of the file's own store.

    Raises:
        NotFoundError: no such file.
        InvalidInputError: not TOML, a misspelt key (the nearest right one is suggested), or a
            value that does not fit.
    """
    try:
        content = read_settings_file(location)
    except NotFoundError as error:
        raise NotFoundError(
            f"{location} does not exist. Give the path of a fusion.toml; README shows one."
        ) from error
    if store is not None:
        content["store"] = store
    where = str(location)
    capture = _table(content.pop("capture", {}), "capture", where)
    models = _table(content.get("models", {}), "models", where)
    content["models"] = {
        name: _model(_table(table, f"models.{name}", where), capture, f"[models.{name}] of {where}")
        for name, table in models.items()
    }
    train = _table(content.pop("train", {}), "train", where)
    runs = _table(train.pop("runs", {}), "train.runs", where)
    target = content.get("fuse", {}).get("target", "")
    content["train"] = {
        name: _run(
            _table(run, f"train.runs.{name}", where),
            train,
            target,
            f"[train.runs.{name}] of {where}",
        )
        for name, run in runs.items()
    }
    for key, model in (("corpus", CorpusConfig), ("align", AlignConfig), ("fuse", FuseConfig)):
        if key in content:
            table = _table(content[key], key, where)
            content[key] = parse_settings(model, table, f"[{key}] of {where}")
    return parse_settings(FusionConfig, content, where)


def _table(value: Any, name: str, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} in {where} must be a table: write [{name}].")
    return dict(value)


def _model(table: dict[str, Any], shared: dict[str, Any], where: str) -> ModelConfig:
    own: dict[str, Any] = {key: table.pop(key) for key in ("model", "licence") if key in table}
    capture = parse_settings(CaptureSettings, {**shared, **table}, where)
    return parse_settings(ModelConfig, {**own, "capture": capture}, where)


def _run(table: dict[str, Any], shared: dict[str, Any], target: str, where: str) -> TrainConfig:
    model = table.pop("model", target)
    settings = parse_settings(TrainSettings, {**shared, **table}, where)
    return parse_settings(TrainConfig, {"model": model, "settings": settings}, where)
