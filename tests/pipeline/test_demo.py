"""The demonstration's student, and its file; `make demo` as a whole takes minutes."""

import importlib.util
from pathlib import Path

import pytest

from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
from tests.helpers.tiny_job import hashes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_student_is_always_the_same(tmp_path):
    spec = importlib.util.spec_from_file_location("demo_student", EXAMPLES / "demo_student.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name in ("one", "two"):
        script.main(str(tmp_path / name))
    assert hashes(Location.parse(tmp_path / "one")) == hashes(Location.parse(tmp_path / "two"))
    student = Model.open(str(tmp_path / "one"))
    assert student.vocab_size == len(student.tokenizer.vocabulary) == 4_096
    parameters = sum(weights.numel() for weights in student.load(device="cpu").parameters())
    assert round(parameters / 1e6, 1) == 2.6


def test_the_file_names_two_sources_a_student_and_its_baseline():
    config = load_config(Location.parse(EXAMPLES / "demo.toml"))
    assert config.captured == ["smollm2", "gemma3"]
    assert config.fuse["addresses-uniform"].target == "student"
    baseline, fused = config.train.values()
    assert (baseline.settings.objective, fused.settings.objective) == ("clm", "fuse")
    # Only the objective differs, and the curves have ten points or more.
    changes = {"objective", "lm_weight", "tail"}
    assert baseline.settings.model_dump(exclude=changes) == fused.settings.model_dump(
        exclude=changes
    )
    assert baseline.settings.max_steps / baseline.settings.eval_every >= 10
