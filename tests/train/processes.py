"""Training in two processes on this machine, as a launcher starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from fusestore.train import TrainSettings

SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from torch.distributed.tensor import DTensor
from fusestore.data import FusedDataset
from fusestore.storage.urls import Location
from fusestore.train import TrainSettings, student, train
from tests.train.runs import held_out

model, data, folder, settings, stop_after = sys.argv[1:]
seen = {}

class Watched(student.Student):
    def forward(self, batch):
        pieces = [type(value) is DTensor for value in self.model.model.layers.parameters()]
        seen["whole"] = not any(pieces)
        return super().forward(batch)

def told(report):
    if report.step == int(stop_after):
        os.kill(os.getpid(), signal.SIGTERM)

from fusestore.train import trainer
trainer.Student = Watched
train(Path(model), FusedDataset(data), TrainSettings.model_validate_json(settings),
      Location.parse(folder + "/model"), Path(folder) / "work", evaluation=held_out(),
      progress=told)
sys.stderr.write("layers in pieces: " + str(not seen["whole"]) + "\\n")
"""

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_cpu_ram_efficient_loading: true
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _arguments(model_path, fused_folder, folder, settings, stop_after):
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return [script, model_path, fused_folder, folder, settings.model_dump_json(), str(stop_after)]


def _environment(**variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        **variables,
    }


def two_processes(model_path, fused_folder, folder, settings: TrainSettings, stop_after=-1):
    """Train data parallel; the processes' return codes and what they wrote to stderr."""
    arguments = _arguments(model_path, fused_folder, folder, settings, stop_after)
    shared = _environment(
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
    )
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


def launch(model_path, fused_folder, folder, settings: TrainSettings, stop_after=-1):
    """Train under `accelerate launch` with FSDP; its return code, and stderr."""
    arguments = _arguments(model_path, fused_folder, folder, settings, stop_after)
    (folder / "config.yaml").write_text(FSDP)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", folder / "config.yaml", "--main_process_port", str(free_port())]
    ended = subprocess.run(
        [*command, *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return ended.returncode, ended.stderr
