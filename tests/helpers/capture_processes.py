"""Captures in processes that may be killed.

`CaptureProcesses` talks to one server process, which imports everything once and forks a child for
each capture: a child begins in milliseconds, and dies like any other process. Run as a script,
this file is that server: `start JSON` forks a capture and prints its process id, `wait ID` prints
its exit status.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path


class CaptureProcesses:
    """Starts captures of one model over one corpus, each in a process of its own."""

    def __init__(self, model, corpus="demo", **settings):
        # Not for the server, which is this file as well.
        from tests.helpers.fork_server import python

        self.job = {"model": str(model), "corpus": corpus, "settings": settings}
        self.server = subprocess.Popen(
            [python(), __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
        )

    def start(self, store, log=os.devnull, pause=0.0, first_wait=None, **environment):
        """Begin a capture; its process id.

        Each shard is noted in the file `log` when it is captured, after a pause of `pause` seconds.
        What fails in passing is tried again after `first_wait` seconds instead of the usual wait.
        """
        job = {**self.job, "store": str(store), "log": str(log), "pause": pause}
        job["first_wait"] = first_wait
        return self._ask(f"start {json.dumps({**job, 'environment': environment})}")

    def wait(self, child):
        """The exit status, as `os.waitpid` has it."""
        return self._ask(f"wait {child}")

    def run(self, store, kill_after=None):
        """Whether the capture finished, rather than being killed; the seconds it took."""
        child = self.start(store)
        began = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            kill(child)
        status = self.wait(child)
        assert status in (0, signal.SIGKILL)
        return status == 0, time.monotonic() - began

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def _ask(self, command):
        self.server.stdin.write(f"{command}\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())


def kill(child):
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def serve():
    import torch
    import zarr.codecs.numcodecs  # noqa: F401 - imported once, before the forks

    from fusestore.capture.run import capture  # noqa: F401
    from fusestore.corpus.corpus import open_corpus  # noqa: F401

    torch.set_num_threads(1)
    _load_kernels()
    for line in sys.stdin:
        command, argument = line.split(" ", 1)
        if command == "wait":
            print(os.waitpid(int(argument), 0)[1], flush=True)  # noqa: T201
            continue
        child = os.fork()
        if child == 0:
            os._exit(_capture(json.loads(argument)))
        print(child, flush=True)  # noqa: T201


def _load_kernels():
    """What is loaded before the forks, no child has to load. Not Polars: its threads stay."""
    import numpy as np
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    from fusestore.cache.id_order import learn_order
    from fusestore.cache.kernels import code_ties, number_ids
    from fusestore.capture.cpu import top_k_on_cpu

    labels = torch.zeros(3, dtype=torch.int64)
    rows = top_k_on_cpu(torch.randn(3, 300), torch.arange(3), labels, 7)
    ids, logprobs = (values.numpy() for values in rows[:2])
    tokens = np.arange(3, dtype=np.int32)
    order = learn_order(300, tokens, tokens, ids, logprobs > -np.inf)
    row_class = order.token_class[tokens]
    numbers = number_ids(ids, logprobs, row_class, order.class_numbers, order.id_to_rank)
    code_ties(numbers, np.ones(numbers.shape, np.uint16))


def _capture(job):
    from fusestore.capture.run import capture
    from fusestore.capture.settings import CaptureSettings
    from fusestore.capture.shard_queue import ShardQueue
    from fusestore.corpus.corpus import open_corpus
    from fusestore.models.model import Model
    from fusestore.storage import retries
    from fusestore.store.layout import Store

    os.environ.update(job["environment"])
    retries.FIRST_WAIT_S = job["first_wait"] or retries.FIRST_WAIT_S
    put = ShardQueue.put

    def noted(self, shard, rows):
        time.sleep(job["pause"])
        with Path(job["log"]).open("a") as log:
            log.write(f"{shard}\n")
        put(self, shard, rows)

    ShardQueue.put = noted
    store = Store.open(job["store"])
    settings = CaptureSettings(**job["settings"])
    try:
        capture(
            store, "tiny", Model.open(job["model"]), open_corpus(store, job["corpus"]), settings
        )
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
