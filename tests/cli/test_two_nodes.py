"""Two nodes by torchrun: a folder of its own for each, one store; one of them is killed midway."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from tests.helpers.fork_server import python
from tests.helpers.started_ranks import environment, free_port

PROGRAM = """
import os, time
from pathlib import Path
from fusestore.train.updates import Updates

make_step = Updates.step

def step(self, number, *arguments):
    if "STALL" in os.environ and os.environ["RANK"] == "1" and number == 4:
        Path(os.environ["STALL"]).write_text(str(os.getpid()))
        time.sleep(600)
    return make_step(self, number, *arguments)

Updates.step = step
from fusestore_cli.app import main
main()
"""


class Nodes:
    """Two nodes that train with the same command."""

    def __init__(self, folder: Path, job: Path, store: str) -> None:
        self.folder = folder
        program = folder / "program.py"
        program.write_text(PROGRAM)
        self.command = [program, "train", job / "small", "--name", "new", "--fused", "mince"]
        self.command += ["--store", store, "--precision", "float32", "--batch-size", "2"]
        self.command += ["--max-steps", "8", "--checkpoint-every", "1", "--lr", "1e-3"]
        self.command += ["--evaluate", "addresses/held_out"]

    def start(self, **variables: str) -> list[subprocess.Popen[str]]:
        port = str(free_port())
        return [self._start(node, port, variables) for node in range(2)]

    def _start(self, node: int, port: str, variables: dict[str, str]) -> subprocess.Popen[str]:
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node)]
        options += ["--master-addr", "127.0.0.1", "--master-port", port]
        own = {"FUSESTORE_HOME": str(self.home(node)), "PYTHON_EXEC": python()}
        return subprocess.Popen(
            [python(), "-m", "torch.distributed.run", *options, *map(str, self.command)],
            env=environment(TORCHINDUCTOR_COMPILE_THREADS="1", **own, **variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def home(self, node: int) -> Path:
        return self.folder / f"home-{node}"

    def finish(self, **variables: str) -> list[str]:
        """Both must end with exit code 0; what they printed."""
        nodes = self.start(**variables)
        said = [node.communicate(timeout=240)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], said
        return said


def alone(command, nodes, name="alone"):
    """One process with the same windows a step."""
    arguments = [name if part == "new" else part for part in nodes.command[1:]]
    arguments[arguments.index("--batch-size") + 1] = "4"
    return command.succeeds(*arguments, "--json").json


def check_same(found: Location, expected: Location):
    ours, theirs = (json.loads((each / "manifest.json").read_bytes()) for each in (found, expected))
    assert ours["plan"]["world_size"] == 2
    assert ours["num_tokens"] == theirs["num_tokens"]
    for one, two in zip(ours["loss_curve"], theirs["loss_curve"], strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert ours["evaluations"][-1]["metrics"] == pytest.approx(
        theirs["evaluations"][-1]["metrics"], rel=1e-4
    )
    weights, others = (
        load_file(each.path / "model.safetensors") if each.is_local else _loaded(each)
        for each in (found, expected)
    )
    for name in others:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-3, atol=1e-5)


def _loaded(model: Location):
    from safetensors.torch import load

    return load((model / "model.safetensors").read_bytes())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_share_a_folder(command, job, store, tmp_path):
    nodes = Nodes(tmp_path, job, str(store))
    said = nodes.finish()
    assert sum("Trained new in" in each for each in said) == 1
    alone(command, nodes)
    models = Location.parse(store) / "models"
    check_same(models / "new", models / "alone")
    # Their own folders hold nothing that is left.
    assert not [*nodes.home(0).rglob("checkpoint"), *nodes.home(1).rglob("checkpoint")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_of_two_nodes_is_killed(command, job, first_store, s3_url, tmp_path):
    """The store lies on S3; each node has its own home, so only one of them has the checkpoint."""
    url = f"{s3_url}/my.store"
    for path in Location.parse(first_store).list_recursive():
        publish(Location.parse(url) / path, (first_store / path).read_bytes())
    nodes = Nodes(tmp_path, job, url)
    stalled = tmp_path / "stalled"
    first, second = nodes.start(STALL=str(stalled))
    deadline = time.monotonic() + 120
    while not (stalled.exists() and stalled.read_text()):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second.kill()
    os.kill(int(stalled.read_text()), signal.SIGKILL)
    begin = time.monotonic()
    said = " ".join(first.communicate(timeout=120)[0].split())
    # torchrun ends all processes of the node some seconds after the first.
    assert time.monotonic() - begin < 60
    assert first.returncode == 1
    assert "Process 0 of 2 lost another" in said
    assert "The checkpoint of step 3 is kept in" in said
    assert "Start all processes again by the same command." in said
    second.communicate()
    nodes.finish()
    alone(command, nodes)
    models = Location.parse(url) / "models"
    check_same(models / "new", models / "alone")
    assert not list(nodes.home(0).rglob("checkpoint"))
