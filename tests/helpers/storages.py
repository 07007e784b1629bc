"""On which storage a test runs by default, and on which with the slow ones."""

import pytest

S3_IS_SLOW = pytest.mark.parametrize(
    "some", ["local", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
"""For tests that take the fixture `some`, and repeat on S3 what others do there already."""
