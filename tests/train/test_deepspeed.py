"""DeepSpeed through accelerate's configuration: data parallelism's course, resume, and guards."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from fusestore.errors import IncompatibleError, MissingDependencyError
from fusestore.train import LoraSettings
from fusestore.train.distributed.deepspeed_engine import check_deepspeed
from tests.helpers.fork_server import python
from tests.helpers.train_processes import launch, two_processes, zero, zero3_of_file
from tests.helpers.train_runs import SETTINGS, check_same_course, folder_bytes, run

SETTINGS = SETTINGS.model_copy(
    update={
        "learning_rate": 1e-3,
        "eval_every": 2,
        "checkpoint_every": 2,
        "max_steps": 5,
        "logits": "chunked",
    }
)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_zero_follows_data_parallelism_and_resumes(tiny_model_path, fused_folder, tmp_path):
    arguments = (tiny_model_path, fused_folder)
    codes, said = two_processes(*arguments, tmp_path / "parallel", SETTINGS)
    assert codes == [0, 0], said
    for stage, configuration in ((2, zero(2)), (3, zero3_of_file(tmp_path / "zero3.json"))):
        whole, broken = tmp_path / f"whole-{stage}", tmp_path / f"broken-{stage}"
        code, said = launch(*arguments, whole, SETTINGS, configuration=configuration)
        assert code == 0, said
        assert f"layers in pieces: {stage == 3}" in said
        check_same_course(whole, tmp_path / "parallel")
        # Stopped after step 3, in one process, by what a scheduler sends.
        code, said = launch(*arguments, broken, SETTINGS, stop_after=3, configuration=configuration)
        assert code != 0
        assert "Stopped after step 3 of 5" in said
        state = json.loads((broken / "work/checkpoint/state.json").read_bytes())
        assert state["step"] == 3
        code, said = launch(*arguments, broken, SETTINGS, configuration=configuration)
        assert code == 0, said
        assert folder_bytes(whole / "model") == folder_bytes(broken / "model")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lora_begun_under_zero_goes_on_data_parallel(tiny_model_path, fused_folder, tmp_path):
    settings = SETTINGS.model_copy(
        update={"lora": LoraSettings(rank=4, dropout=0.1), "gradient_checkpointing": True}
    )
    arguments = (tiny_model_path, fused_folder)
    codes, said = two_processes(*arguments, tmp_path / "parallel", settings)
    assert codes == [0, 0], said
    for stage in (1, 3):
        folder = tmp_path / str(stage)
        code, said = launch(*arguments, folder, settings, stop_after=3, configuration=zero(stage))
        assert code != 0
        assert "Stopped after step 3 of 5" in said
        codes, said = two_processes(*arguments, folder, settings)
        assert codes == [0, 0], said
        check_same_course(folder, tmp_path / "parallel")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_gradient_that_is_no_number_changes_nothing(
    tiny_model_path, fused_folder, tmp_path, stage
):
    code, said = launch(
        tiny_model_path,
        fused_folder,
        tmp_path / "run",
        SETTINGS,
        configuration=zero(stage),
        SPOIL_GRADIENT="true",
    )
    assert code != 0
    assert "NonFiniteError: Step 1: the loss or its gradient is inf for windows" in said
    assert "No weights were changed by this step" in said
    assert "weights as before: True" in said
    assert "weights as before: False" not in said
    assert not (tmp_path / "run" / "model").exists()


def config_of(**others):
    section = {"stage": 2, "offload_optimizer": {"device": "none"}}
    return {"zero_optimization": section, "bf16": {"enabled": False}, **others}


def test_a_configuration_is_filled_in():
    config = config_of(
        train_batch_size="auto",
        train_micro_batch_size_per_gpu="auto",
        gradient_clipping=SETTINGS.max_grad_norm,
        # What accelerate writes where nothing is said.
        gradient_accumulation_steps=1,
    )
    check_deepspeed(config, SETTINGS, 2)
    assert config["train_micro_batch_size_per_gpu"] == SETTINGS.batch_size
    assert config["gradient_clipping"] == SETTINGS.max_grad_norm
    assert "train_batch_size" not in config
    config = config_of()
    check_deepspeed(config, SETTINGS.model_copy(update={"max_grad_norm": 0.0}), 2)
    assert config["gradient_clipping"] == 0.0


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"zero_optimization": {"stage": 0}}, "ZeRO stage 0; 1, 2 and 3 are supported"),
        ({"optimizer": {"type": "AdamW"}}, "section 'optimizer'.*Remove"),
        ({"scheduler": {"type": "WarmupLR"}}, "section 'scheduler'.*Remove"),
        ({"bf16": {"enabled": True}}, "bf16.enabled: true.*precision"),
        ({"fp16": {"enabled": True}}, "fp16.enabled: true.*precision"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offload_param on nvme",
        ),
        ({"train_micro_batch_size_per_gpu": 16}, "per_gpu: 16, but batch_size.*is 3"),
        ({"gradient_accumulation_steps": 4}, "steps: 4, but gradient_accumulation.*is 2"),
        ({"train_batch_size": 32}, "train_batch_size: 32, but batch_size.*is 12"),
        ({"gradient_clipping": 0.5}, "clipping: 0.5, but max_grad_norm.*is 1.0"),
    ],
)
def test_other_configurations_are_refused(others, message):
    with pytest.raises(IncompatibleError, match=message):
        check_deepspeed(config_of(**others), SETTINGS, 2)


def test_without_deepspeed_the_extra_is_named(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("accelerate.accelerator.is_deepspeed_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fusestore\[deepspeed\]'"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path)
    assert not (tmp_path / "model").exists()


ALONE = """
import sys
from pathlib import Path
from fusestore.data import FusedDataset
from fusestore.storage.location import Location
from fusestore.train import LoraSettings, TrainSettings, train
from tests.helpers.train_runs import held_out

model, data, folder = sys.argv[1:]
settings = TrainSettings(
    max_steps=1, precision="float32", lora=LoraSettings(rank=2), gradient_checkpointing=True
)
train(model, FusedDataset(data), settings, Location.parse(folder + "/model"),
    Path(folder) / "work", evaluation=held_out())
assert "deepspeed" not in sys.modules
"""


@pytest.mark.slow
def test_deepspeed_is_not_imported_unless_a_configuration_names_it(
    tiny_model_path, fused_folder, tmp_path
):
    pytest.importorskip("deepspeed")
    ended = subprocess.run(
        [python(), "-c", ALONE, tiny_model_path, fused_folder, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert ended.returncode == 0, ended.stderr
    assert "real_accelerator" not in ended.stderr + ended.stdout
