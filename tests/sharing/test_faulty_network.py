"""What happens to a store between storages, over a network that fails one request in ten."""

import pytest

from fusestore.storage import retries
from fusestore.store.layout import Store
from tests.helpers.fault_proxy import FAULTS, FaultProxy
from tests.helpers.there_and_back import there_and_back

FEW = ("corpus/addresses", "vocabulary/deba6c3979ce4230", "model/fused")
MORE = (*FEW, "cache/small", "fused/mince")


# tests/storage/test_faults.py has each verb and fault in the usual run.
@pytest.mark.slow
@pytest.mark.parametrize(("names", "seed"), [(FEW, 1), (MORE, 2), (MORE, 3)])
def test_every_byte_arrives(first_store, s3_url, s3_endpoint, tmp_path, monkeypatch, names, seed):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    kinds = (*FAULTS, "hang")
    with FaultProxy(s3_endpoint, rate=0.1, seed=seed, kinds=kinds, hang_s=30.0) as proxy:
        options = {"endpoint_url": proxy.url, "read_timeout": "0.4"}
        remote = Store.open(f"{s3_url}/store", options)
        there_and_back(Store.open(first_store), remote, tmp_path, names, "fused")
        assert sum(proxy.happened.values()) >= 15
