"""A preset stands for the settings that it names, and leaves no trace in what is kept."""

from typing import get_args

import pytest
from pydantic import ValidationError

from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.fuse.recipe import Recipe
from fusestore.store.presets import Preset
from fusestore.train.settings import TrainSettings

GIVEN = {
    AlignSettings: {},
    CaptureSettings: {},
    Recipe: {"sources": ("a", "b"), "target": "c"},
    TrainSettings: {},
}


@pytest.mark.parametrize("settings", GIVEN)
@pytest.mark.parametrize("preset", get_args(Preset))
def test_a_preset_equals_its_settings_spelled_out(settings, preset):
    named = settings(preset=preset, **GIVEN[settings])
    spelled = settings(**{**settings.PRESETS.get(preset, {}), **GIVEN[settings]})
    assert named == spelled
    assert "preset" not in named.model_dump()
    assert settings(**named.model_dump()) == named


@pytest.mark.parametrize("settings", GIVEN)
def test_best_is_the_default_and_fusellm_is_not(settings):
    default = settings(**GIVEN[settings])
    assert settings(preset="best", **GIVEN[settings]) == default
    assert settings(preset="fusellm", **GIVEN[settings]) != default


def test_what_is_given_goes_before_a_preset():
    recipe = Recipe(preset="fusellm", top_k=7, **GIVEN[Recipe])
    assert (recipe.top_k, recipe.strategy, recipe.score) == (7, "mince", "token_ce")


@pytest.mark.parametrize("name", ["fuselm", "", 1, None, ["best"]])
def test_an_unknown_preset_is_refused(name):
    if name is None:
        assert AlignSettings(preset=name) == AlignSettings()
        return
    with pytest.raises(ValidationError, match="'best' or 'fusellm'"):
        AlignSettings(preset=name)
