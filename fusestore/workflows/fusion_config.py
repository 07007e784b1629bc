"""`FusionConfig`: what one fusion.toml says. See examples/demo.toml for a whole one."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.fuse.recipe import Recipe
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


class FuseConfig(Frozen):
    """One fused dataset: its name and its recipe, in which target and corpus are named."""

    name: str
    recipe: Recipe


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
    align: AlignSettings = AlignSettings()
    fuse: FuseConfig
    train: dict[str, TrainConfig] = Field(default_factory=dict)
    evaluate_split: str | None = None
    log_dir: str | None = None

    @property
    def captured(self) -> list[str]:
        """Models whose distributions the fusion needs, in the order of the file."""
        recipe = self.fuse.recipe
        needed = {recipe.target_cache, *(source.cache for source in recipe.sources)}
        return [name for name in self.models if name in needed]

    @property
    def target(self) -> str:
        """The model whose tokens are supervised, one of `models`."""
        return str(self.fuse.recipe.target)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = ", ".join(self.models)
        recipe = self.fuse.recipe
        wanted = {self.target, *(source.cache for source in recipe.sources)}
        wanted |= {run.model for run in self.train.values()}
        for name in sorted(wanted - set(self.models)):
            raise ValueError(f"model {name!r} is not among [models]: {known}")
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
    corpus = _table(content.get("corpus", {}), "corpus", where)
    align = _table(content.get("align", {}), "align", where)
    content["align"] = parse_settings(AlignSettings, align, f"[align] of {where}")
    if "fuse" in content:
        table = _table(content["fuse"], "fuse", where)
        name = str(corpus.get("name", CorpusConfig.model_fields["name"].default))
        content["fuse"] = _fuse(table, name, content["align"], f"[fuse] of {where}")
    target = content["fuse"].recipe.target if "fuse" in content else ""
    content["train"] = {
        name: _run(
            _table(run, f"train.runs.{name}", where),
            train,
            target,
            f"[train.runs.{name}] of {where}",
        )
        for name, run in runs.items()
    }
    if "corpus" in content:
        content["corpus"] = parse_settings(CorpusConfig, corpus, f"[corpus] of {where}")
    return parse_settings(FusionConfig, content, where)


def _table(value: Any, name: str, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} in {where} must be a table: write [{name}].")
    return dict(value)


def _model(table: dict[str, Any], shared: dict[str, Any], where: str) -> ModelConfig:
    own: dict[str, Any] = {key: table.pop(key) for key in ("model", "licence") if key in table}
    capture = parse_settings(CaptureSettings, {**shared, **table}, where)
    return parse_settings(ModelConfig, {**own, "capture": capture}, where)


def _fuse(table: dict[str, Any], corpus: str, align: AlignSettings, where: str) -> FuseConfig:
    """The recipe that [fuse] is, with the values that other tables of the file settle."""
    settled = {
        "corpus": ("[corpus] name", corpus),
        "alignment_method": ("[align] method", align.method),
        "vocabulary_method": ("[align] vocabulary", align.vocabulary),
    }
    for key, (place, value) in settled.items():
        if table.get(key, value) != value:
            raise InvalidInputError(
                f"{key} in {where} is {table[key]!r}, but {place} is {value!r}. Remove {key}: a "
                f"fusion.toml settles it by {place}."
            )
        table[key] = value
    name = table.pop("name", "fused")
    recipe = Recipe.parse(table, where)
    changes: dict[str, Any] = {}
    if recipe.target is None:
        if len(recipe.sources) > 1:
            known = ", ".join(source.cache for source in recipe.sources)
            raise InvalidInputError(
                f"{where} names several sources, {known}, and no target. Add the model whose "
                f"tokens are supervised, as in target = {recipe.sources[0].cache!r}."
            )
        changes["target"] = recipe.sources[0].cache
    if recipe.unaligned == "target" and recipe.target_cache is None:
        changes["target_cache"] = changes.get("target", recipe.target)
    recipe = recipe.model_copy(update=changes)
    return parse_settings(FuseConfig, {"name": name, "recipe": recipe}, where)


def _run(table: dict[str, Any], shared: dict[str, Any], target: str, where: str) -> TrainConfig:
    model = table.pop("model", target)
    settings = parse_settings(TrainSettings, {**shared, **table}, where)
    return parse_settings(TrainConfig, {"model": model, "settings": settings}, where)
