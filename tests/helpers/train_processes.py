"""Training in several processes on this machine, as a launcher starts them."""

import json
import subprocess
from pathlib import Path

from fusestore.train import TrainSettings
from tests.helpers.fork_server import python
from tests.helpers.started_ranks import environment, free_port, start_ranks

SCRIPT = """
import os, signal, sys
from pathlib import Path
import numpy as np
import torch
from torch.distributed.tensor import DTensor
from fusestore.data import FusedDataset, StreamingFusedDataset
from fusestore.storage.location import Location
from fusestore.train import TrainSettings, train
from fusestore.train.student import student
from tests.helpers.train_runs import held_out

model, data, folder, settings, stop_after = sys.argv[1:]
seen = {}

class Watched(student.Student):
    def forward(self, batch):
        # ZeRO 3 leaves nothing in a parameter that it has not gathered.
        layers = self.model.model.layers.parameters()
        seen["whole"] = not any(type(value) is DTensor or value.numel() == 0 for value in layers)
        seen["passes"] = seen.get("passes", 0) + 1
        if os.environ.get("KILL") == f"rank {os.environ['RANK']} pass {seen['passes']}":
            os.kill(os.getpid(), signal.SIGKILL)
        terms = super().forward(batch)
        if "SPOIL_GRADIENT" in os.environ:
            # Of ZeRO 3 this process's piece.
            pieces = {
                name: getattr(value, "ds_tensor", value)
                for name, value in self.named_parameters()
            }
            seen["before"] = {name: value.clone() for name, value in pieces.items()}
            seen["after"] = pieces
            terms.loss.register_hook(lambda gradient: gradient * float("nan"))
        return terms

def told(report):
    if report.step == int(stop_after):
        os.kill(os.getpid(), signal.SIGTERM)

if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    # What it compiles for processes of one machine needs a compiler, and changes no result.
    from deepspeed.ops import __compatible_ops__
    __compatible_ops__["deepspeed_shm_comm"] = False
    # Its 2 GB for gradients take longer than this model's training.
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    DeepSpeedZeroConfig.model_fields["reduce_bucket_size"].default = 2**16
    DeepSpeedZeroConfig.model_rebuild(force=True)

def failing(model):
    raise LookupError("no such text")

evaluation = failing if "FAIL_EVALUATION" in os.environ else held_out()

from fusestore.train import trainer
trainer.Student = Watched
chosen = TrainSettings.model_validate_json(settings)
if "STREAMED" in os.environ:
    dataset = StreamingFusedDataset(
        data, seed=chosen.seed, shuffle_span=None, cache_dir=folder + "/cache"
    )
else:
    dataset = FusedDataset(data)
try:
    train(Path(model), dataset, chosen, Location.parse(folder + "/model"),
        Path(folder) / "work", evaluation=evaluation, progress=told)
finally:
    if "before" in seen:
        now = seen["after"]
        same = all(torch.equal(now[name], value) for name, value in seen["before"].items())
        sys.stderr.write("weights as before: " + str(same) + "\\n")
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

DEEPSPEED = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
use_cpu: true
num_machines: 1
num_processes: 2
deepspeed_config:
"""


def zero(stage: int) -> str:
    """A configuration as `accelerate config` writes it."""
    options = {
        "zero_stage": stage,
        "gradient_clipping": "auto",
        "offload_optimizer_device": "none",
        "offload_param_device": "none",
        "zero3_init_flag": "true",
    }
    return DEEPSPEED + "".join(f"  {name}: {value}\n" for name, value in options.items())


def zero3_of_file(file: Path) -> str:
    """A configuration that names a file of DeepSpeed's own, which leaves all to be filled in."""
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": "auto",
        },
    }
    file.write_text(json.dumps(config))
    return DEEPSPEED + f"  deepspeed_config_file: {file}\n"


def _arguments(model_path, fused_folder, folder, settings, stop_after):
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    return [script, model_path, fused_folder, folder, settings.model_dump_json(), str(stop_after)]


VARIABLES = {"ACCELERATE_USE_CPU": "true", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def two_processes(
    model_path, fused_folder, folder, settings: TrainSettings, stop_after=-1, **variables: str
):
    """Train data parallel; the processes' return codes and what they wrote to stderr."""
    return processes(2, model_path, fused_folder, folder, settings, stop_after, **variables)


def processes(
    world_size,
    model_path,
    fused_folder,
    folder,
    settings: TrainSettings,
    stop_after=-1,
    **variables: str,
):
    """Train in a number of processes, by `FSDP_VARIABLES` or `zero_variables` sharded."""
    arguments = _arguments(model_path, fused_folder, folder, settings, stop_after)
    # Importing DeepSpeed takes longer than these runs.
    modules = ("deepspeed",) if "ACCELERATE_USE_DEEPSPEED" in variables else ()
    started = start_ranks(arguments, world_size, modules=modules, **VARIABLES, **variables)
    errors = [process.communicate(timeout=300)[1] for process in started]
    return [process.returncode for process in started], errors


FSDP_VARIABLES = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch` sets for the configuration `FSDP`."""


def zero_variables(stage: int, file: Path) -> dict[str, str]:
    """What `accelerate launch` sets for DeepSpeed's own configuration, which is written here."""
    config = {"zero_optimization": {"stage": stage}, "gradient_clipping": "auto"}
    file.write_text(json.dumps(config))
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


def launch(
    model_path,
    fused_folder,
    folder,
    settings: TrainSettings,
    stop_after=-1,
    configuration=FSDP,
    **variables: str,
):
    """Train under `accelerate launch`; its return code, and stderr."""
    arguments = _arguments(model_path, fused_folder, folder, settings, stop_after)
    (folder / "config.yaml").write_text(configuration)
    # Importing DeepSpeed takes longer than these runs, of which each has three processes.
    interpreter = python("deepspeed") if configuration.startswith(DEEPSPEED) else python()
    command = [interpreter, "-m", "accelerate.commands.launch"]
    command += ["--config_file", folder / "config.yaml", "--main_process_port", str(free_port())]
    ended = subprocess.run(
        [*command, *arguments],
        # What the launcher starts the script by.
        env=environment(**VARIABLES, **variables, PYTHON_EXEC=interpreter),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return ended.returncode, ended.stderr
