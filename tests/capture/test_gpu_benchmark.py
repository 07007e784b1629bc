"""The script that is prepared for a GPU runs, at toy sizes, on whatever machine this is."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.fork_server import python

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_runs(tmp_path):
    out = tmp_path / "gpu.json"
    command = [python(), "benchmarks/gpu.py", "--toy", "--device", "cpu", "--out", str(out)]
    subprocess.run(
        command,
        cwd=ROOT,
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found = json.loads(out.read_text())
    assert found.keys() == {"device", "torch", "sizes", "capture", "selection", "packing", "loss"}
    assert found["capture"]["batching"] == "rows"
    assert found["capture"]["ratio"] > 0
    assert found["selection"]["share_of_capture"] > 0
    packed, before = (found["packing"][f"sdpa, {way}"] for way in ("rows", "as before"))
    assert packed["padding"] <= before["padding"]
    assert found["loss"].keys() == {"whole", "chunked"}
