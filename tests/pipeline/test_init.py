"""The file that `fusestore init` writes is valid, and its commented defaults are the defaults."""

import re

import pytest

from fusestore.align.settings import AlignSettings
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.settings import CorpusSettings
from fusestore.errors import AlreadyExistsError
from fusestore.fuse.recipe import Recipe
from fusestore.storage.location import Location
from fusestore.train.settings import TrainSettings
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.template import fusion_template, write_template


@pytest.fixture
def loaded(tmp_path):
    def load(text):
        file = tmp_path / "fusion.toml"
        file.write_text(text)
        return load_config(Location.parse(file))

    return load


def test_the_file_is_valid_and_its_defaults_are_true(loaded):
    text = fusion_template()
    config = loaded(text)
    assert config.captured == ["smollm2", "gemma3"]
    assert config.fuse["fused"].target == "smollm2"
    assert set(config.train) == {"fused", "baseline"}
    uncommented = re.sub(r"^#(\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert uncommented != text
    assert loaded(uncommented) == config


def test_every_setting_is_explained():
    text = fusion_template()
    settled = {"corpus", "alignment_method", "vocabulary_method", "lora"}
    for settings in (CorpusSettings, CaptureSettings, AlignSettings, Recipe, TrainSettings):
        for name in set(settings.model_fields) - settled:
            assert re.search(rf"^# .+\n#?{name} =", text, re.MULTILINE), name
    assert max(map(len, text.splitlines())) <= 100


def test_a_file_that_is_there_is_left(tmp_path):
    file = tmp_path / "deep" / "fusion.toml"
    write_template(file)
    file.write_text("mine")
    with pytest.raises(AlreadyExistsError, match="left as it is"):
        write_template(file)
    assert file.read_text() == "mine"
