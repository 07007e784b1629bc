"""A bucket behind a proxy that fails when it is told to."""

import pytest

from fusestore.storage import retries as failures
from fusestore.storage.location import Location
from tests.helpers.fault_proxy import FaultProxy


@pytest.fixture
def proxy(s3_endpoint, monkeypatch):
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.002)
    with FaultProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def root(s3_url, proxy):
    """A folder of the bucket, through the proxy."""
    return Location.parse(s3_url, {"endpoint_url": proxy.url}) / "store"
