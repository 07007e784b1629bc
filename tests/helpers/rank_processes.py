"""A capture by two processes that share a model, as torchrun starts them."""

import subprocess
from dataclasses import dataclass

from tests.helpers.started_ranks import start_ranks

SCRIPT = """
import os, signal, sys
import torch
from fusestore.capture.engines import tensor_parallel_engine as module
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import open_corpus
from fusestore.models import rank_group
from fusestore.models.model import Model
from fusestore.store.layout import Store
from tests.helpers.lines import Lines

store, model, name, settings, fault = sys.argv[1:]
rank = int(os.environ["RANK"])
written = []
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def watch(event, arguments):
    writes = event in ("os.mkdir", "os.rename", "os.link", "os.remove")
    if event == "open" and isinstance(arguments[2], int):
        writes = bool(arguments[2] & WRITES)
    if writes and store in str(arguments[0]):
        written.append((event, arguments[0]))

sys.addaudithook(watch)
rank_group.AGREE_S = 1.0
own = module.TensorParallelEngine.run_part
runs = []

def run_part(self, arguments):
    runs.append(len(arguments[0]))
    if rank == 1 and fault == "dies" and len(runs) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == 1 and fault == "fails before" and len(runs) == 4:
        raise ValueError("a part is missing")
    rows = own(self, arguments)
    if rank == 1 and fault == "fails after" and len(runs) == 4:
        raise ValueError("a part is missing")
    if rank == 1 and fault == "out of memory" and len(arguments[0]) > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return rows

module.TensorParallelEngine.run_part = run_part
opened = Store.open(store)
lines = Lines()
try:
    result = capture(opened, name, Model.open(model), open_corpus(opened, "demo"),
        CaptureSettings.model_validate_json(settings), reporter=lines)
    print("rows", len(result.artifact), "created", result.created)
except Exception as error:
    print("error", type(error).__name__, error)
    raise SystemExit(1)
finally:
    print("writes", len(written), "largest batch", max(runs, default=0), "last", runs[-1:])
    for line in lines.said:
        print("line", line)
"""


@dataclass(frozen=True)
class Ended:
    """How one rank ended, and what it printed."""

    code: int
    out: str


def capture_by_two(job, name, fault="", **settings) -> list[Ended]:
    """Capture a cache of an `EngineJob`; rank 1 has the fault. One result per rank."""
    chosen = job.settings(tensor_parallel=True, dtype="float32", **settings)
    arguments = [job.store.location, job.folder, name, chosen.model_dump_json(), fault]
    processes = start_ranks(["-c", SCRIPT, *arguments], stderr=subprocess.STDOUT)
    outs = [process.communicate(timeout=240)[0] for process in processes]
    return [Ended(p.returncode, out) for p, out in zip(processes, outs, strict=True)]
