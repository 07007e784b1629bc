"""The fusion.toml that `fusestore init` writes, made of the settings classes that read it.

A line `# text` says what a setting is. A line `#key = value` is the setting at its default, so that
without its `#` the line changes nothing. A setting without a default that TOML can express is a
line `#key =`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.settings import CorpusSettings
from fusestore.errors import AlreadyExistsError
from fusestore.fuse.recipe import Recipe
from fusestore.merge.settings import MergeSettings
from fusestore.storage.location import Location
from fusestore.storage.publish import publish_new, remove_abandoned_in
from fusestore.store.settings_file import toml_value
from fusestore.train.settings import LoraSettings, TrainSettings
from fusestore.workflows.fusion_config import (
    CorpusConfig,
    FuseConfig,
    FusionConfig,
    ModelConfig,
    TrainConfig,
)

_WIDTH = 88
_SAID_ABOVE = {"preset"}
_SETTLED_ELSEWHERE = {"corpus", "alignment_method", "vocabulary_method"}


def fusion_template() -> str:
    """The text of the file: two models, their fusion, and a training run with its baseline."""
    return "\n".join([*_head(), *_models(), *_fusion(), *_training()]) + "\n"


def write_template(file: Path) -> None:
    """Write the file.

    Raises:
        AlreadyExistsError: there is a file of other content; it was left as it is.
        AccessDeniedError, StorageError: it cannot be written there.
    """
    remove_abandoned_in(file.parent)
    try:
        publish_new(Location.parse(file), fusion_template().encode())
    except AlreadyExistsError as error:
        raise AlreadyExistsError(
            f"{file} exists and was left as it is. Give another path, as in "
            f"`fusestore init {file.with_stem(f'{file.stem}-2')}`."
        ) from error


def _head() -> Iterator[str]:
    yield from _comment(
        "What one fusion needs, from text to trained models. `fusestore run` with this file builds "
        "what is missing. A line `#key = value` shows a default: remove the `#` to change it."
    )
    yield ""
    values = {"store": "my.store", "evaluate_split": "held_out"}
    yield from _settings(
        FusionConfig,
        values,
        only={
            *("store", "preset", "storage_options", "plugins", "evaluate_split"),
            *("log_dir", "plot", "report"),
        },
    )
    yield from _title("corpus", CorpusSettings)
    corpus = {"inputs": ["texts/*.txt"], "held_out_fraction": 0.05}
    yield from _settings(CorpusConfig, corpus, first=("name", "inputs"))


def _models() -> Iterator[str]:
    for name, spec in (
        ("smollm2", "HuggingFaceTB/SmolLM2-135M"),
        ("gemma3", "google/gemma-3-270m"),
    ):
        yield from ("", f"[models.{name}]")
        only = {"model", "license"}
        if name == "smollm2":
            yield from _settings(ModelConfig, {"model": spec}, only=only)
            yield "# A setting of [capture] may stand here too; then it is of this model alone."
        else:
            yield f"model = {toml_value(spec)}"
    yield from _title("capture", CaptureSettings)
    # Each model has its own license, in its table.
    yield from _settings(CaptureSettings, {}, skip=_SAID_ABOVE | {"license"})
    yield from _title("align", AlignSettings)
    yield from _settings(AlignSettings, {}, skip=_SAID_ABOVE)


def _fusion() -> Iterator[str]:
    yield from _title("fuse", Recipe)
    yield from _settings(FuseConfig, {}, only={"name"})
    recipe = {"sources": ["smollm2", "gemma3"], "target": "smollm2"}
    yield from _settings(Recipe, recipe, skip=_SAID_ABOVE | _SETTLED_ELSEWHERE)
    yield ""
    yield from _comment(
        "Several fusions: name each in a table [fuse.datasets.NAME], in which a setting of [fuse] "
        "may stand too, and leave out `name` above. A run then says `fused = NAME`."
    )


def _training() -> Iterator[str]:
    yield from _title("train", TrainSettings, "Shared by all runs.")
    yield from _settings(TrainSettings, {}, skip=_SAID_ABOVE | {"lora"})
    yield ""
    yield from _comment("A table [train.lora] trains low-rank updates instead of all weights.")
    yield from _comment(f"Its keys: {', '.join(LoraSettings.model_fields)}.")
    yield from ("", "[train.runs.fused]")
    yield from _settings(TrainConfig, {}, only={"model"})
    yield "# A setting of [train] may stand here too; then it is of this run alone."
    yield from ("", "# The baseline: the same text in the same order, without the distributions.")
    yield from ("[train.runs.baseline]", 'objective = "clm"')
    yield ""
    yield from _comment(
        "A table [merge.NAME] merges the weights of runs, named in `models`, into one more model. "
        f"Its further keys: {', '.join(MergeSettings.model_fields)}."
    )


def _title(table: str, settings: type[BaseModel], more: str = "") -> Iterator[str]:
    yield ""
    summary = (settings.__doc__ or "").strip().splitlines()[0]
    yield from _comment(f"{summary} {more}")
    yield f"[{table}]"


def _settings(
    settings: type[BaseModel],
    values: Mapping[str, Any],
    *,
    first: Collection[str] = (),
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> Iterator[str]:
    """Two or more lines for each field; fields with a value are set to it."""
    fields = settings.model_fields
    for name in dict.fromkeys([*first, *fields]):
        if name in skip or (only is not None and name not in only):
            continue
        yield from _comment(_description(fields[name]))
        yield (
            f"{name} = {toml_value(values[name])}"
            if name in values
            else _default(name, fields[name])
        )


def _description(field: FieldInfo) -> str:
    """What a setting is, and its choices where that does not name them."""
    text = field.description or ""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if all(choice in text for choice in choices):
        return text
    return f"{text} Choices: {', '.join(choices)}."


def _default(name: str, field: FieldInfo) -> str:
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    return f"#{name} =" if value is None else f"#{name} = {toml_value(value)}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text.strip(), _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )
