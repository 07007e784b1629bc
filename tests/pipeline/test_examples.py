"""The examples run as they are written: our data and loss in other people's training code."""

import importlib.util
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.errors import InvalidInputError
from tests.helpers.fork_server import python

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH = 4
STEPS = 18
"""Two epochs of the dataset `mince`."""


def losses(text):
    return [float(loss) for loss in re.findall(r"^step \d+: (\S+)$", text, re.MULTILINE)]


def run(*command):
    done = subprocess.run(
        [python(), *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "PYTHON_EXEC": python(),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_learned(dataset, told):
    """The second time they are read, the same windows have smaller losses."""
    per_epoch = -(-len(dataset) // BATCH)
    assert len(told) == STEPS == 2 * per_epoch
    assert sum(told[per_epoch:]) < sum(told[:per_epoch])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_trained(folder, before):
    """The folder loads, and holds other weights than it began with."""
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    start = AutoModelForCausalLM.from_pretrained(before).state_dict()
    assert any(not torch.equal(start[name], value) for name, value in trained.items())
    assert all(torch.isfinite(value).all() for value in trained.values())


def test_a_plain_loop_learns_the_same_twice(first_store, job, tmp_path):
    told = [
        losses(run(EXAMPLES / "plain_loop.py", first_store, "mince", job / "small", out, STEPS))
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    assert told[0] == told[1]
    check_learned(fs.open_fused(first_store, "mince"), told[0])
    check_trained(tmp_path / "one", job / "small")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_transformers_trainer(first_store, job, tmp_path, capsys):
    example("hf_trainer").main(
        str(first_store), "mince", str(job / "small"), str(tmp_path / "out"), "6"
    )
    shown = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", capsys.readouterr().out)]
    assert len(shown) == 6
    assert shown[-1] < shown[0]
    check_trained(tmp_path / "out", job / "small")


@pytest.mark.slow
def test_trl_trains_an_adapter(first_store, job, tmp_path):
    out = tmp_path / "out"
    shown = run(EXAMPLES / "trl_sft.py", first_store, "mince", job / "small", out, 6)
    found = [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", shown)]
    assert len(found) == 6
    assert found[-1] < found[0]
    assert (out / "adapter_model.safetensors").exists()


def test_columns_that_a_trainer_removed_are_missed(first_store):
    """What the Trainer does when it is not told `remove_unused_columns=False`."""
    dataset = fs.open_fused(first_store, "mince")
    kept = [{"input_ids": dataset[i]["input_ids"]} for i in range(2)]
    with pytest.raises(InvalidInputError, match=r"fused_ids.*remove_unused_columns=False"):
        fs.data.collate(kept)


@pytest.mark.slow
def test_accelerate_with_two_processes_makes_the_steps_of_one(first_store, job, tmp_path):
    arguments = [EXAMPLES / "accelerate_loop.py", first_store, "mince", job / "small"]
    one = losses(run(*arguments, tmp_path / "one", 6))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    launch += ["--master-port", free_port()]
    two = losses(run(*launch, *arguments, tmp_path / "two", 6))
    assert len(one) == len(two) == 6
    # Losses are printed with four decimals.
    assert one == pytest.approx(two, abs=2e-4)
    check_trained(tmp_path / "two", job / "small")


@pytest.mark.slow
def test_lightning_goes_on_in_the_middle_of_an_epoch(first_store, job, tmp_path):
    def told(out, steps):
        return losses(
            run(EXAMPLES / "lightning_loop.py", first_store, "mince", job / "small", out, steps)
        )

    whole = told(tmp_path / "one", STEPS)
    check_learned(fs.open_fused(first_store, "mince"), whole)
    parts = [told(tmp_path / "two", steps) for steps in (5, STEPS)]
    assert len(parts[0]) == 5
    assert parts[0] + parts[1] == whole
    check_trained(tmp_path / "one", job / "small")
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_loader_with_workers_gives_the_same_batches(first_store):
    dataset = fs.open_fused(first_store, "mince")
    order = fs.data.BatchOrder(len(dataset), 2, seed=1, epoch=0)
    plain, worked = (
        list(DataLoader(dataset, batch_sampler=order, collate_fn=fs.data.collate, num_workers=n))
        for n in (0, 2)
    )
    assert len(plain) == len(order)
    for one, other in zip(plain, worked, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
