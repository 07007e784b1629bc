"""Marks of tests that need later versions than the lowest; see `LOWEST_VERSIONS`."""

import pytest

from fusestore.models.placement import is_supported

SPREADS = pytest.mark.skipif(not is_supported("device_map"), reason="needs a later accelerate")
DIVIDES = pytest.mark.skipif(
    not is_supported("tensor_parallel"), reason="needs a later transformers"
)
