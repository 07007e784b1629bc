"""Processes of one torch.distributed group, as torchrun starts them."""

import os
import socket
import subprocess
from pathlib import Path

from tests.helpers.fork_server import python


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a program that imports this checkout, on one core."""
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **variables}


def start_ranks(arguments, world_size=2, stderr=subprocess.PIPE, modules=(), **variables: str):
    """Start the same program in every rank; one process for each, with its output as text.

    `modules` are imported before; see `fork_server.python`.
    """
    shared = environment(
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        **variables,
    )
    return [
        subprocess.Popen(
            [python(*modules), *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for rank in range(world_size)
    ]
