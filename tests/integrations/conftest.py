"""A tiny Llama without dropout, and fused datasets for it."""

import numpy as np
import pytest

from fusestore.data import FusedDataset
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.tiny_models import make_llama, save_model
from tests.helpers.whole_dataset import write_dataset


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("model") / "tiny", make_llama(100), None)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def uneven_arrays(num_tokens, seed=0):
    """Windows of 16 with few and with many labels and distributions."""
    arrays = random_arrays(num_tokens, seed=seed)
    window, place = np.divmod(np.arange(num_tokens), 16)
    arrays["next_ids"][place > 3 * (window % 5) + 2] = -100
    arrays["kind"][(window + place) % 3 == 0] = 0
    return arrays


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """13 windows, the last one short."""
    folder = tmp_path_factory.mktemp("data") / "uneven"
    return FusedDataset(
        write_fused(folder, uneven_arrays(12 * 16 + 5), window_length=16, chunk_rows=64)
    )


@pytest.fixture(scope="session")
def held_out(tmp_path_factory):
    """7 windows."""
    folder = tmp_path_factory.mktemp("data") / "held-out"
    return FusedDataset(
        write_fused(folder, uneven_arrays(6 * 16 + 9, seed=1), window_length=16, chunk_rows=64)
    )


@pytest.fixture(scope="session")
def streamed(tmp_path_factory):
    """The folder of a dataset that can be streamed: 13 windows in shards of 3 windows."""
    folder = tmp_path_factory.mktemp("stream") / "store/fused/demo"
    write_dataset(folder, num_tokens=12 * 16 + 5, window_length=16, rows_per_shard=48)
    return folder
