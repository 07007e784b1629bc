"""Presets: values, under a name, of the settings that a user did not give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from fusestore.store.manifest import Frozen

Preset = Literal["best", "fusellm"]
"""best: the defaults, which are what docs/pretrained.md found. fusellm: those of the paper's code
(Wan et al., ICLR 2024)."""


class SettingsWithPresets(Frozen):
    """Settings whose user may name a preset and give only what differs from it.

    A preset is read and forgotten: the settings that it stands for are what is kept and compared,
    so an artifact is the same whether they were named or spelled out.
    """

    PRESETS: ClassVar[Mapping[Preset, Mapping[str, Any]]] = {}
    """Values by setting, under each preset that differs from the defaults."""

    preset: Preset | None = Field(
        default=None,
        exclude=True,
        repr=False,
        description="Values of the settings that are not given. best: the defaults, found by "
        "measurement. fusellm: those of FuseLLM's public code.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:  # noqa: ANN401 - pydantic validates the result
        if not isinstance(values, Mapping) or values.get("preset") not in get_args(Preset):
            return values
        given = {name: value for name, value in values.items() if name != "preset"}
        return {**cls.PRESETS.get(values["preset"], {}), **given}
