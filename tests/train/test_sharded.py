"""FSDP2 through accelerate's configuration: the same course as data parallelism, and its resume."""

import json

import pytest
from accelerate import FullyShardedDataParallelPlugin

from fusestore.errors import IncompatibleError
from fusestore.train import LoraSettings
from fusestore.train.distributed.launch import check_fsdp
from tests.helpers.train_processes import launch, two_processes
from tests.helpers.train_runs import SETTINGS, check_same_course, folder_bytes, run

SETTINGS = SETTINGS.model_copy(update={"learning_rate": 1e-3, "eval_every": 2, "max_steps": 5})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fsdp_follows_data_parallelism_and_resumes(tiny_model_path, fused_folder, tmp_path):
    settings = SETTINGS.model_copy(update={"logits": "chunked", "checkpoint_every": 2})
    arguments = (tiny_model_path, fused_folder)
    code, said = launch(*arguments, tmp_path / "whole", settings)
    assert code == 0, said
    assert "layers in pieces: True" in said
    # Stopped after step 3, in one process, by what a scheduler sends.
    code, said = launch(*arguments, tmp_path / "broken", settings, stop_after=3)
    assert code != 0
    assert "Stopped after step 3 of 5" in said
    state = json.loads((tmp_path / "broken" / "work/checkpoint/state.json").read_bytes())
    assert state["step"] == 3
    code, said = launch(*arguments, tmp_path / "broken", settings)
    assert code == 0, said
    assert folder_bytes(tmp_path / "whole" / "model") == folder_bytes(tmp_path / "broken" / "model")
    codes, said = two_processes(*arguments, tmp_path / "parallel", settings)
    assert codes == [0, 0], said
    check_same_course(tmp_path / "whole", tmp_path / "parallel")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lora_under_fsdp_follows_data_parallelism(tiny_model_path, fused_folder, tmp_path):
    settings = SETTINGS.model_copy(
        update={
            "lora": LoraSettings(rank=4, dropout=0.1),
            "gradient_checkpointing": True,
            "result": "best",
        }
    )
    arguments = (tiny_model_path, fused_folder)
    code, said = launch(*arguments, tmp_path / "sharded", settings)
    assert code == 0, said
    assert "layers in pieces: True" in said
    codes, said = two_processes(*arguments, tmp_path / "parallel", settings)
    assert codes == [0, 0], said
    check_same_course(tmp_path / "sharded", tmp_path / "parallel")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1}, "FSDP1 is not supported.*fsdp_version: 2"),
        (
            {"fsdp_version": 2, "auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 1000},
            "fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        ),
    ],
)
def test_other_fsdp_configurations_are_refused(options, message):
    with pytest.raises(IncompatibleError, match=message):
        check_fsdp(FullyShardedDataParallelPlugin(**options))
    check_fsdp(FullyShardedDataParallelPlugin(fsdp_version=2))


def test_megatron_is_refused(tiny_model_path, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(IncompatibleError, match=r"is not supported.*fsdp_version: 2"):
        run(tiny_model_path, dataset, SETTINGS, tmp_path)
    assert not (tmp_path / "model").exists()
