"""Two processes over gloo make the same steps as one with twice the batch."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fusestore.data import FusedDataset
from fusestore.storage.urls import Location
from fusestore.train import TrainSettings, train

SCRIPT = """
import sys
from pathlib import Path
from fusestore.data import FusedDataset
from fusestore.storage.urls import Location
from fusestore.train import TrainSettings, train

model, data, folder, settings = sys.argv[1:]
train(Path(model), FusedDataset(data), TrainSettings.model_validate_json(settings),
      Location.parse(folder + "/model"), Path(folder) / "work")
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_follow_one(tiny_model_path, fused_folder, tmp_path):
    model_path = tmp_path / "no_dropout"
    shutil.copytree(tiny_model_path, model_path)
    config = json.loads((model_path / "config.json").read_text())
    (model_path / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.0}))
    # 16 windows of 32 tokens: the last one is shorter, so only its step may differ.
    settings = TrainSettings(batch_size=2, precision="no", learning_rate=1e-3, epochs=2)
    (tmp_path / "script.py").write_text(SCRIPT)
    root = str(Path(__file__).parents[2])
    shared = {
        **os.environ,
        "PYTHONPATH": root,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    arguments = [model_path, fused_folder, tmp_path / "two", settings.model_dump_json()]
    processes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "script.py", *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    alone = train(
        model_path,
        FusedDataset(fused_folder),
        settings.model_copy(update={"batch_size": 4}),
        Location.parse(tmp_path / "one" / "model"),
        tmp_path / "one" / "work",
    )
    found = json.loads((tmp_path / "two" / "model" / "manifest.json").read_text())
    assert found["plan"]["world_size"] == 2
    assert found["num_tokens"] == alone.manifest.num_tokens
    for two, one in zip(found["loss_curve"], alone.manifest.loss_curve, strict=True):
        assert two["loss"] == pytest.approx(one.loss, rel=5e-3)
