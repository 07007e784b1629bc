"""`fusestore demo`: its student, its file, and what it says; the whole run takes minutes.

`make check-release` runs it whole, from an installed wheel.
"""

import tomllib
from pathlib import Path

import pytest

from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.workflows.demo import demo_files
from fusestore.workflows.demo.demo_student import make_student
from fusestore.workflows.fusion_config import load_config
from tests.helpers.tiny_job import hashes


@pytest.mark.slow
def test_the_student_is_always_the_same(tmp_path):
    for name in ("one", "two"):
        make_student(str(tmp_path / name))
    assert hashes(Location.parse(tmp_path / "one")) == hashes(Location.parse(tmp_path / "two"))
    student = Model.open(str(tmp_path / "one"))
    assert student.vocab_size == len(student.tokenizer.vocabulary) == 4_096
    parameters = sum(weights.numel() for weights in student.load(device="cpu").parameters())
    assert round(parameters / 1e6, 1) == 2.6


def test_the_file_names_two_sources_a_student_and_its_baseline(tmp_path):
    (tmp_path / "demo.toml").write_text(demo_files.demo_toml(".demo"), encoding="utf-8")
    config = load_config(Location.parse(tmp_path / "demo.toml"))
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


@pytest.mark.parametrize("folder", [".demo", "a/b", '/tmp/"quoted" \\1 name', "fusestore-demo"])
def test_everything_goes_into_the_folder(folder):
    content = tomllib.loads(demo_files.demo_toml(folder))
    made = [content["store"], content["plot"], content["report"]]
    made.append(content["models"]["student"]["model"])
    names = ("store", "curves.svg", "report.html", "student")
    assert made == [str(Path(folder) / name) for name in names]
