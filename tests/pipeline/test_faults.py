"""A whole fusion on S3 behind a proxy that fails one request in ten ends with the same bytes.

Training reads the fused dataset as a stream. Among the faults are stalls of thirty seconds.
"""

import pytest

from fusestore.errors import FusestoreError
from fusestore.storage import retries
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
from fusestore.workflows.pipeline import run_pipeline
from fusestore.workflows.verification import verify_store
from tests.helpers.fault_proxy import FAULTS, FaultProxy
from tests.helpers.tiny_job import hashes, write_fusion


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_fusion_behind_a_faulty_network(s3_url, s3_endpoint, job, first_store, tmp_path, seed):
    root = f"{s3_url}/my.store"
    file = Location.parse(write_fusion(tmp_path, job, root))
    kinds = (*FAULTS, "hang")
    with FaultProxy(s3_endpoint, rate=0.1, seed=seed, kinds=kinds, hang_s=30.0) as proxy:
        options = {"endpoint_url": proxy.url, "read_timeout": "1"}
        config = load_config(file, storage_options=options)
        for _ in range(5):
            try:
                run_pipeline(config)
            except FusestoreError:
                continue
            break
        assert sum(proxy.happened.values()) >= 40
        assert proxy.happened["hang"] >= 1
    assert hashes(Location.parse(root)) == hashes(Location.parse(first_store))


@pytest.mark.slow
def test_verifying_behind_a_faulty_network_finds_nothing_wrong(s3_url, s3_endpoint, first_store):
    from fusestore.storage.publish import publish
    from fusestore.store.layout import Store

    local = Location.parse(first_store)
    for name in local.list_recursive():
        publish(Location.parse(s3_url) / name, (local / name).read_bytes())
    with FaultProxy(s3_endpoint, rate=0.1, seed=3) as proxy:
        found = verify_store(Store.open(s3_url, {"endpoint_url": proxy.url}))
    assert len(found) == 10
    assert not any(found.values())
