"""`FusionConfig`: what one fusion.toml says. `fusestore init` writes one to start from.

Everything in the file is checked here, before anything slow is imported or begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.settings import CorpusSettings
from fusestore.errors import InvalidInputError, NotFoundError, did_you_mean
from fusestore.fuse.recipe import Recipe
from fusestore.merge.settings import MergeSettings
from fusestore.plugins import load_plugins
from fusestore.storage.location import Location
from fusestore.storage.shown import HIDDEN, shown
from fusestore.store.layout import check_name
from fusestore.store.manifest import Frozen
from fusestore.store.presets import SettingsWithPresets
from fusestore.store.settings_file import (
    check_keys,
    parse_settings,
    read_settings_file,
)
from fusestore.train.settings import TrainSettings

_Model = TypeVar("_Model", bound=BaseModel)


class CorpusConfig(CorpusSettings):
    """The table [corpus]: the corpus's name, its text, and its settings."""

    name: str = Field(default="corpus", description="Name of the corpus.")
    inputs: tuple[str, ...] = Field(
        min_length=1,
        description="Files, shell patterns, folders or URLs of text, JSON, .csv, .tsv, .parquet "
        "or .arrow files; `fusestore corpus --help` lists all.",
    )


class FuseConfig(Frozen):
    """One fused dataset: its name and its recipe, in which target and corpus are named."""

    name: str = Field(
        default="fused",
        description="Name of the fused dataset; those of [fuse.datasets] have their own.",
    )
    recipe: Recipe


class ModelConfig(Frozen):
    """One model: what it is and how it is captured."""

    model: str = Field(
        min_length=1, description="A folder, a hub id, a .gguf file, or package:NAME."
    )
    license: str | None = Field(
        default=None,
        description="License of the model, which its cache records and `fusestore publish` names. "
        "By default the one that the model's card, metadata or license file names.",
    )
    capture: CaptureSettings


class TrainConfig(Frozen):
    """One training run."""

    fused: str = Field(
        description="Fused dataset to train on. By default the only one, that of [fuse]."
    )
    model: str = Field(
        description="Model to start from, one of [models]. By default the fused dataset's target."
    )
    settings: TrainSettings


class MergeConfig(Frozen):
    """One merged model; the base of a method that needs one is what the runs start from."""

    models: tuple[str, ...] = Field(
        min_length=1, description="Training runs whose models are merged."
    )
    settings: MergeSettings


class FusionConfig(SettingsWithPresets):
    """Everything one fusion needs, from text to trained models."""

    store: str = Field(
        min_length=1, description="Folder or URL of the store, such as s3://bucket/my.store."
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the store's storage, such as endpoint_url or anon. Pass "
        "credentials in the environment instead.",
    )
    plugins: tuple[str, ...] = Field(
        default=(),
        description="Python modules that register strategies, divergences or artifact kinds.",
    )
    corpus: CorpusConfig
    models: dict[str, ModelConfig] = Field(min_length=1)
    align: AlignSettings = AlignSettings()
    fuse: dict[str, Recipe] = Field(min_length=1)
    train: dict[str, TrainConfig] = Field(default_factory=dict)
    merge: dict[str, MergeConfig] = Field(default_factory=dict)
    evaluate_split: str | None = Field(
        default=None,
        description="Split of the corpus on which models are scored before, during and after "
        "training. By default they are not scored.",
    )
    log_dir: str | None = Field(
        default=None,
        description="Local folder outside the store for TensorBoard logs. By default no logs.",
    )
    plot: str | None = Field(
        default=None,
        min_length=1,
        description="SVG file outside the store for a plot of held-out bits per byte by training "
        "tokens; needs `eval_every` in [train]. By default no file.",
    )
    report: str | None = Field(
        default=None,
        min_length=1,
        description="HTML file outside the store for a page about the store, as `fusestore report` "
        "writes it. By default no file.",
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Fields for `repr`: without secrets of the store's address and options."""
        for name, value in super().__repr_args__():
            if name == "storage_options":
                yield name, dict.fromkeys(value, HIDDEN)
            else:
                yield name, shown(value) if name == "store" else value

    @property
    def captured(self) -> list[str]:
        """Models whose distributions the fusions need, in the order of the file."""
        needed = {recipe.target_cache for recipe in self.fuse.values()}
        needed |= {source.cache for recipe in self.fuse.values() for source in recipe.sources}
        return [name for name in self.models if name in needed]

    def base_of(self, merge: MergeConfig) -> str:
        """The model that the merged runs start from."""
        return self.train[merge.models[0]].model

    @model_validator(mode="after")
    def _storage_takes_the_options(self) -> Self:
        Location.parse(self.store, self.storage_options)
        return self

    @model_validator(mode="after")
    def _plot_has_curves(self) -> Self:
        along = any(run.settings.eval_every is not None for run in self.train.values())
        if self.plot is not None and not (self.evaluate_split and along):
            raise ValueError(
                "plot shows evaluations during training: set evaluate_split, and eval_every in "
                "[train]"
            )
        return self

    @model_validator(mode="after")
    def _names_can_be_used(self) -> Self:
        for name in (self.corpus.name, *self.models, *self.fuse, *self.train, *self.merge):
            check_name(name)
        twice = sorted(self.train.keys() & self.merge.keys())
        if twice:
            raise ValueError(
                f"{twice[0]!r} is the name of a training run and of a merge, and both make a model "
                "of that name. Rename one"
            )
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for recipe in self.fuse.values():
            wanted = [source.cache for source in recipe.sources]
            wanted += [name for name in (recipe.target, recipe.target_cache) if name is not None]
            for name in wanted:
                _check_known("model", name, self.models, "[models]")
        for run in self.train.values():
            _check_known("fused dataset", run.fused, self.fuse, "[fuse.datasets]")
            _check_known("model", run.model, self.models, "[models]")
        splits = self.corpus.splits
        if splits is not None:
            for split in {recipe.split for recipe in self.fuse.values()} | {self.evaluate_split}:
                if split is not None:
                    _check_known("split", split, splits, "what [corpus] makes")
        return self

    @model_validator(mode="after")
    def _runs_can_be_merged(self) -> Self:
        for name, merge in self.merge.items():
            for run in merge.models:
                _check_known("training run", run, self.train, "[train.runs]")
                lora = self.train[run].settings.lora
                if lora is not None and lora.adapter_only:
                    raise ValueError(
                        f"[merge.{name}] names the run {run!r}, whose result is a LoRA adapter "
                        "alone. Leave adapter_only out of its settings"
                    )
            starts = list(dict.fromkeys(self.train[run].model for run in merge.models))
            if len(starts) > 1:
                raise ValueError(
                    f"[merge.{name}] merges runs that start from one model, but these start from "
                    f"{', '.join(starts)}. `fusestore merge` merges any models"
                )
        return self


def code_notices(config: FusionConfig) -> list[str]:
    """One line for each place where a file has code run that is no part of fusestore."""
    notices = [f"plugin {name} was imported, as the file says" for name in config.plugins]
    for name, model in config.models.items():
        if model.capture.trust_remote_code:
            notices.append(
                f"model {name}: Python code of {model.model} runs, because the file says "
                "trust_remote_code = true"
            )
    return notices


def load_config(
    location: Location,
    store: str | None = None,
    storage_options: Mapping[str, object] | None = None,
) -> FusionConfig:
    """Read a fusion.toml, import its plugins, and check all of it.

    Shared defaults stand in `[capture]`, `[fuse]` and `[train]`; `[models.NAME]`,
    `[fuse.datasets.NAME]` and `[train.runs.NAME]` override them. `preset` is that of every table
    that names none.

    Args:
        location: the file.
        store: used instead of the file's own store, and without the file's storage options.
        storage_options: of the store's storage, over those of the file.

    Raises:
        NotFoundError: no such file, or no such plugin.
        InvalidInputError: not TOML, a misspelt key or name (the nearest right one is suggested),
            or a value that does not fit.
    """
    try:
        content = read_settings_file(location)
    except NotFoundError as error:
        raise NotFoundError(
            f"{location} does not exist. Give the path of a fusion.toml; `fusestore init` writes "
            "one to start from."
        ) from error
    where = str(location)
    own_options = _table(content.pop("storage_options", {}), "storage_options", where)
    content["storage_options"] = {**({} if store else own_options), **(storage_options or {})}
    if store is not None:
        content["store"] = store
    check_keys(content, [*FusionConfig.model_fields, "capture"], where)
    _load_plugins(content.get("plugins", []), where)
    parsed = dict(content)
    preset = {key: value for key, value in content.items() if key == "preset"}
    parse_settings(SettingsWithPresets, preset, where)
    capture, align, fuse, train = (
        {**preset, **_table(parsed.pop(name, {}), name, where)}
        for name in ("capture", "align", "fuse", "train")
    )
    # A misspelt key in a table of defaults is its own, not that of a table that uses it.
    check_keys(capture, list(CaptureSettings.model_fields), f"[capture] of {where}")
    parsed["models"] = {
        name: _model(_table(table, f"models.{name}", where), capture, f"[models.{name}] of {where}")
        for name, table in _table(content.get("models", {}), "models", where).items()
    }
    parsed["align"] = parse_settings(AlignSettings, align, f"[align] of {where}")
    if "corpus" in content:
        table = _table(content["corpus"], "corpus", where)
        parsed["corpus"] = parse_settings(CorpusConfig, table, f"[corpus] of {where}")
    recipes: dict[str, Recipe] = {}
    if "fuse" in content and "corpus" in content:
        recipes = _fuse(fuse, parsed["corpus"].name, parsed["align"], where)
        parsed["fuse"] = recipes
    parsed["train"] = _train(train, recipes, where)
    parsed["merge"] = {
        name: _merge(_table(table, f"merge.{name}", where), f"[merge.{name}] of {where}")
        for name, table in _table(parsed.get("merge", {}), "merge", where).items()
    }
    return parse_settings(FusionConfig, parsed, where)


def _load_plugins(names: Any, where: str) -> None:  # noqa: ANN401 - what the file says
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidInputError(
            f"plugins of {where} must be a list of module names, as in "
            f'plugins = ["my_strategies"]; it is {names!r}.'
        )
    load_plugins(names)


def _check_known(word: str, name: str, known: Iterable[str], where: str) -> None:
    names = list(known)
    if name not in names:
        hint = did_you_mean(name, names) or f"There are: {', '.join(names)}."
        raise ValueError(f"{word} {name!r} is not among {where}. {hint}")


def _table(value: Any, name: str, where: str) -> dict[str, Any]:  # noqa: ANN401
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} in {where} must be a table: write [{name}].")
    return dict(value)


def _split(
    config: type[BaseModel], settings: type[_Model], table: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a table that are its own, and those that are settings."""
    own = [name for name, field in config.model_fields.items() if field.annotation is not settings]
    check_keys(table, [*own, *settings.model_fields], where)
    return (
        {key: value for key, value in table.items() if key in own},
        {key: value for key, value in table.items() if key not in own},
    )


def _model(table: dict[str, Any], shared: dict[str, Any], where: str) -> ModelConfig:
    own, settings = _split(ModelConfig, CaptureSettings, table, where)
    if "license" in own:
        settings["license"] = own["license"]
    capture = parse_settings(CaptureSettings, {**shared, **settings}, where)
    return parse_settings(ModelConfig, {**own, "capture": capture}, where)


def _fuse(
    table: dict[str, Any], corpus: str, align: AlignSettings, where: str
) -> dict[str, Recipe]:
    """The recipes of [fuse] and [fuse.datasets] by the names of their fused datasets."""
    known = [*FuseConfig.model_fields, "datasets", *Recipe.model_fields]
    check_keys(table, [key for key in known if key != "recipe"], f"[fuse] of {where}")
    datasets = _table(table.pop("datasets", {}), "fuse.datasets", where)
    if not datasets:
        own, rest = _split(FuseConfig, Recipe, table, f"[fuse] of {where}")
        recipe = _recipe(rest, corpus, align, f"[fuse] of {where}")
        fuse = parse_settings(FuseConfig, {**own, "recipe": recipe}, f"[fuse] of {where}")
        return {fuse.name: fuse.recipe}
    if "name" in table:
        raise InvalidInputError(
            f"[fuse] of {where} has the name {table['name']!r} and [fuse.datasets], whose tables "
            "are named already. Remove name."
        )
    return {
        name: _recipe(
            {**table, **_table(own, f"fuse.datasets.{name}", where)},
            corpus,
            align,
            f"[fuse.datasets.{name}] of {where}",
        )
        for name, own in datasets.items()
    }


def _recipe(table: dict[str, Any], corpus: str, align: AlignSettings, where: str) -> Recipe:
    """The recipe that a table is, with the values that other tables of the file settle."""
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
    return recipe.model_copy(update=changes)


def _train(
    table: dict[str, Any], recipes: Mapping[str, Recipe], where: str
) -> dict[str, TrainConfig]:
    runs = _table(table.pop("runs", {}), "train.runs", where)
    check_keys(table, [*TrainSettings.model_fields, "runs"], f"[train] of {where}")
    if not runs:
        parse_settings(TrainSettings, table, f"[train] of {where}")
    return {
        name: _run(
            _table(run, f"train.runs.{name}", where),
            table,
            recipes,
            f"[train.runs.{name}] of {where}",
        )
        for name, run in runs.items()
    }


def _run(
    table: dict[str, Any], shared: dict[str, Any], recipes: Mapping[str, Recipe], where: str
) -> TrainConfig:
    own, settings = _split(TrainConfig, TrainSettings, table, where)
    parsed = parse_settings(TrainSettings, {**shared, **settings}, where)
    if "fused" not in own and len(recipes) > 1:
        raise InvalidInputError(
            f"{where} does not say what it learns from, and there are {', '.join(recipes)}. Add "
            f"one of them, as in fused = {next(iter(recipes))!r}."
        )
    fused = own.setdefault("fused", next(iter(recipes), ""))
    target = str(recipes[fused].target) if fused in recipes else ""
    return parse_settings(TrainConfig, {"model": target, **own, "settings": parsed}, where)


def _merge(table: dict[str, Any], where: str) -> MergeConfig:
    own, settings = _split(MergeConfig, MergeSettings, table, where)
    parsed = parse_settings(MergeSettings, settings, where)
    merge = parse_settings(MergeConfig, {**own, "settings": parsed}, where)
    parsed.check_models(len(merge.models))
    return merge
