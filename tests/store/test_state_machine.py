"""Stores under everything that happens to them, in any order: see `state_machine.py`."""

import pytest
import torch

from tests.helpers.small_fusion import SmallFusion
from tests.store.state_machine import run


@pytest.fixture
def fusion(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> SmallFusion:
    folder = tmp_path_factory.mktemp("fusion")
    monkeypatch.setenv("FUSESTORE_HOME", str(folder / "home"))
    return SmallFusion.make(folder)


@pytest.mark.parametrize(
    ("examples", "steps"), [(3, 12), pytest.param(40, 25, marks=pytest.mark.slow)]
)
def test_whatever_happens_every_number_is_right_or_an_error(fusion, examples, steps):
    # Sums over several threads round otherwise.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(fusion, examples, steps)
    finally:
        torch.set_num_threads(threads)
