"""A cache read with zarr-python, NumPy and json alone, as docs/format.md describes it."""

import numpy as np
import pytest

from fusestore.cache.reader import open_cache
from fusestore.store.layout import Store
from tests.kept_store.plain_cache import read_rows

PROFILES = [
    ("compact", 1 / 16),
    ("compact", 0.1),
    ("lossless", None),
    ("fast", 1 / 16),
    ("fast", 0.1),
    ("fast", None),
]


@pytest.mark.parametrize("vocab_size", [50, 2**17 + 500])
@pytest.mark.parametrize(("profile", "step"), PROFILES)
def test_plain_zarr_gives_the_same_numbers(tmp_path, make, profile, step, vocab_size):
    capture = make((40, 0, 31), vocab_size, k=20, absent=0.3, profile=profile, logprob_step=step)
    capture.write(Store.open(tmp_path))
    cache = open_cache(tmp_path, "demo")
    rows, tokens = cache[:], cache.tokens
    for name, values in read_rows(tmp_path / "caches/demo").items():
        ours = getattr(rows, name) if hasattr(rows, name) else getattr(tokens, name)
        assert values.dtype == ours.dtype
        assert np.array_equal(values, ours, equal_nan=name == "label_logprob"), name
