"""Ranks as torchrun, Slurm and Kubernetes tell them."""

import pytest

from fusestore.process_rank import local_rank, process_rank


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PROCID", "NTASKS", "LOCALID", "ARRAY_TASK_ID", "ARRAY_TASK_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
        (
            {
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "SLURM_ARRAY_TASK_ID": "12",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
            },
            (2, 3),
        ),
        ({"JOB_COMPLETION_INDEX": "5", "WORLD_SIZE": "6"}, (5, 6)),
        ({"RANK": "nonsense", "WORLD_SIZE": "4"}, (0, 4)),
        ({"RANK": "9", "WORLD_SIZE": "-4"}, (0, 1)),
    ],
)
def test_rank(monkeypatch, variables, rank):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert process_rank() == rank


def test_local_rank(monkeypatch):
    assert local_rank() == 0
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert local_rank() == 1
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_rank() == 3
