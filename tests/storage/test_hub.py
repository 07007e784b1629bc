"""`hf://` through huggingface_hub's own client, from a repository that a test serves."""

import re
import time
from multiprocessing import forkserver

import huggingface_hub
import huggingface_hub.utils._http as hub_http
import numpy as np
import pytest

from fusestore.data import StreamingFusedDataset, StreamingLoader, open_fused
from fusestore.errors import AccessDeniedError, NotFoundError, StorageError
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.version import FORMAT_VERSION
from fusestore.workflows.sharing import copy_artifacts
from tests.helpers.filled import filled
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_job import hashes
from tests.helpers.whole_dataset import share, windows_of, write_dataset


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A store of one dataset in both forms: five shards, of which the arrays of ids have 800 kB."""
    store = tmp_path_factory.mktemp("repository")
    folder, _ = write_dataset(
        store / "fused" / "local", num_tokens=230_000, window_length=512, rows_per_shard=50_000
    )
    share(folder, Location.parse(store / "fused" / "shared"))
    return store


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Other tests may not ask the Hub. Both, for this process and for those it starts."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def hub(repository):
    with HubServer(repository) as server:
        yield server


def stream(hub, name, cache):
    return StreamingFusedDataset(
        f"{hub.hf}/fused/{name}",
        storage_options=hub.options,
        cache_dir=cache,
        shuffle_span=64,
        seed=5,
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", [pytest.param("local", marks=pytest.mark.slow), "shared"])
def test_a_stream_asks_for_each_byte_once(repository, hub, form, tmp_path):
    expected = windows_of(repository / "fused" / "local")
    dataset = stream(hub, form, tmp_path)
    order = dataset.order.windows(0).tolist()
    for window, sample in zip(order, dataset, strict=True):
        for name, values in expected[window].items():
            np.testing.assert_array_equal(sample[name], values)
    asked = {}
    for path, wanted in hub.requests:
        if "/c/" in path:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
            file = path.split("/resolve/main/")[1]
            asked.setdefault(file, []).extend(range(first // 4, last // 4 + 1))
    assert asked
    for file, words in asked.items():
        size = (repository / file).stat().st_size
        assert sorted(words) == list(range(-(-size // 4)))


@pytest.fixture
def own_fork_server():
    """A fork server of this environment: one that runs already has HF_HUB_OFFLINE=1."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    yield
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.usefixtures("own_fork_server")
def test_workers(hub, tmp_path, method):
    loader = StreamingLoader(
        stream(hub, "shared", tmp_path),
        batch_size=8,
        num_workers=2,
        multiprocessing_context=method,
    )
    seen = [int(window) for batch in loader for window in batch["window"]]
    assert sorted(seen) == list(range(-(-230_000 // 512)))


def test_a_dataset_is_copied_here_and_opened(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(tmp_path))
    dataset = open_fused(hub.hf, "shared", hub.options)
    assert len(dataset) == -(-230_000 // 512)


def test_a_whole_store_is_pulled(tmp_path):
    folder = f"kept_store/format-{FORMAT_VERSION}/store"
    kept = Store.open(Location.parse(__file__).parent.parent / folder)
    with HubServer(kept.location.path) as hub:
        target = Store.open(tmp_path / "store")
        copy_artifacts(Store.open(hub.hf, hub.options), target, ["corpus/addresses", "cache/wide"])
    found, expected = hashes(target.location), hashes(kept.location)
    assert found
    assert found.items() <= expected.items()


def test_what_is_not_there(hub, tmp_path):
    with pytest.raises(NotFoundError, match="hf://datasets/me/x/fused/none"):
        stream(hub, "none", tmp_path)
    with pytest.raises(NotFoundError, match="hf://datasets/me/other/fused/demo"):
        StreamingFusedDataset(
            "hf://datasets/me/other/fused/demo", storage_options=hub.options, cache_dir=tmp_path
        )


def test_a_repository_that_refuses(hub, tmp_path):
    hub.denies = True
    with pytest.raises(AccessDeniedError, match=r"(?s)me/x.* was denied.*HF_TOKEN"):
        stream(hub, "shared", tmp_path)


def closed_session():
    session = hub_http.get_session()
    hub_http.close_session()
    return session


@pytest.mark.parametrize("lost", [closed_session, lambda: None])
def test_a_session_that_another_thread_closed(repository, hub, monkeypatch, lost):
    """The client's threads share one, and close it when they cannot connect."""
    file = Location.parse(f"{hub.hf}/fused/shared/manifest.json", hub.options)
    expected = (repository / "fused" / "shared" / "manifest.json").read_bytes()
    assert filled(file, 5, 100) == expected[5:105]
    get_session, sessions = hub_http.get_session, [lost()]
    monkeypatch.setattr(
        hub_http, "get_session", lambda: sessions.pop() if sessions else get_session()
    )
    assert filled(file, 5, 100) == expected[5:105]
    assert not sessions


@pytest.mark.slow
def test_a_hub_that_is_gone(hub, tmp_path, monkeypatch):
    dataset = stream(hub, "shared", tmp_path)
    hub.stop()
    # The client's own waits, twenty seconds in all.
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(StorageError, match="hf://datasets/me/x/fused/shared"):
        next(iter(dataset))
