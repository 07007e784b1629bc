"""Streams from every storage: what arrives, what is kept, and what happens when things fail."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fusestore.data import StreamingFusedDataset, StreamingLoader
from fusestore.data.shard_cache import download, server
from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.errors import (
    CorruptionError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from fusestore.fuse.manifest import FusedManifest
from fusestore.storage.location import Location
from fusestore.storage.publish import publish
from fusestore.store.receipts import FileRecord
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.fork_server import python
from tests.helpers.range_server import RangeServer
from tests.helpers.small_disk import Disk
from tests.helpers.whole_dataset import plain, share, windows_of, write_dataset

ROOT = Path(__file__).parents[2]
ROWS = 2_048
NUM_SHARDS = 12
SPAN = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The local form, in 12 shards of 16 windows and one half."""
    store = tmp_path_factory.mktemp("origin") / "store"
    folder, _ = write_dataset(
        store / "fused" / "demo",
        num_tokens=(NUM_SHARDS - 1) * ROWS + ROWS // 2 + 5,
        window_length=128,
        rows_per_shard=ROWS,
    )
    return folder


@pytest.fixture(scope="module")
def shared(made, tmp_path_factory):
    """The shared form in a folder; not to be changed."""
    folder = tmp_path_factory.mktemp("shared") / "demo"
    share(made, Location.parse(folder))
    return folder


@pytest.fixture(scope="module")
def expected(made):
    return windows_of(made)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def stream(url, cache, **options):
    return StreamingFusedDataset(
        url, **{"cache_dir": cache, "seed": 5, "shuffle_span": SPAN, **options}
    )


def assert_epoch(dataset, expected):
    order = dataset.order.windows(dataset.state_dict()["epoch"]).tolist()
    for window, sample in zip(order, dataset, strict=True):
        assert plain(sample) == expected[window]


def kept(cache):
    """Sizes of the fetched shards, unfinished ones too, by name, as of one moment."""
    sizes = {}
    with (cache / "stream" / ".lock").open("ab") as lock:
        # Fetching threads evict, allocate and rename under it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in (cache / "stream").glob("*/*"):
            if re.fullmatch(r"(\.tmp-)?\d{6}", path.name):
                with contextlib.suppress(FileNotFoundError):  # given up at this moment
                    sizes[path.name] = path.stat().st_size
    return sizes


@pytest.mark.slow
def test_from_a_bucket_in_either_form(made, expected, cache, s3_url):
    remote = Location.parse(f"{s3_url}/store/fused")
    share(made, remote / "shared")
    for path in made.rglob("*"):
        if path.is_file():
            target = remote / "local" / path.relative_to(made).as_posix()
            publish(target, path.read_bytes())
    for form in ("shared", "local"):
        dataset = stream(remote.url + "/" + form, cache / form)
        assert_epoch(dataset, expected)
        assert len(kept(cache / form)) == NUM_SHARDS
        # The second epoch needs the bucket no more.
        (remote / form / "ids").delete()
        assert_epoch(dataset, expected)
    shared_state, local_state = (stream(f"{remote}/{form}", cache).state_dict() for form in FORMS)
    assert shared_state == local_state


FORMS = ("shared", "local")


@pytest.mark.parametrize("rows", [1_000, pytest.param(3_000, marks=pytest.mark.slow)])
def test_both_forms_have_one_order_whatever_their_shards(tmp_path, cache, rows):
    """The shared form has whole chunks of 2,048 rows; windows lie across the ends of shards.

    A row has two chunks of columns there.
    """
    made, _ = write_dataset(
        tmp_path / "local", num_tokens=9_000, window_length=96, rows_per_shard=rows, k=40
    )
    shared = tmp_path / "shared"
    share(made, Location.parse(shared))
    expected = windows_of(made)
    assert_epoch(stream(made, cache), expected)
    assert_epoch(stream(shared, cache), expected)
    assert_epoch(stream(f"local://{made}", cache / "fetched"), expected)
    assert_epoch(stream(f"local://{shared}", cache / "fetched"), expected)


def test_over_http_by_ranges(made, shared, expected, cache, monkeypatch):
    with RangeServer(shared) as site:
        assert_epoch(stream(site.url, cache), expected)
        # Files that one request may get are asked for whole.
        assert {asked for path, asked in site.requests if "/c/" in path} == {None}
        with pytest.raises(NotFoundError, match="STORE/fused/NAME"):
            stream(f"{site.url}/nowhere", cache)
    # Large files come in pieces. Only this process is told that they are small.
    monkeypatch.setattr(download, "MIN_RANGE_BYTES", 100)
    monkeypatch.setattr(download, "MAX_RANGE_BYTES", 1_000)
    with RangeServer(made) as site:
        dataset = stream(site.url, cache / "pieces")
        fetch_here(dataset, 0)
        pieces = [asked for path, asked in site.requests if path == "/ids/c/0/0"]
        assert len(pieces) == -(-(ROWS * 4 * 4 + 4) // 1_000)
        assert None not in pieces


@pytest.mark.parametrize("form", ["local", "shared"])
def test_a_shard_in_memory_that_was_used(made, shared, form):
    folder = Location.parse(made if form == "local" else shared)
    manifest = FusedManifest.load(folder / "manifest.json")
    layout = ShardLayout.of(manifest)
    fetched = download.Download(folder, manifest)
    # The last one is short.
    for shard in (0, NUM_SHARDS - 1):
        new, used = (np.full(layout.num_bytes, value, np.uint8) for value in (0, 255))
        fetched.fetch(shard, new, alone=True)
        fetched.fetch(shard, used)
        assert layout.is_sound(used)
        assert np.array_equal(used, new)


def test_samples_may_be_changed_in_place(made, shared, expected, cache):
    dataset = stream(f"local://{shared}", cache)
    for _ in range(2):
        order = dataset.order.windows(dataset.state_dict()["epoch"]).tolist()
        for window, sample in zip(order, dataset, strict=True):
            assert plain(sample) == expected[window]
            for values in sample.values():
                values.zero_()
    folder = dataset._job.folder
    for shard in range(NUM_SHARDS):
        with folder.open(shard) as file:
            assert dataset._layout.is_sound(np.frombuffer(file.read(), np.uint8))


def test_samples_outlast_their_shard(shared, expected, cache):
    url = f"local://{shared}"
    limit = (stream(url, cache).order.working_set(ROWS) + 1) * stream(url, cache)._layout.num_bytes
    dataset = stream(url, cache, cache_limit=limit)
    order = dataset.order.windows(0).tolist()
    samples = list(dataset)
    assert len(kept(cache)) < NUM_SHARDS
    for window, sample in zip(order, samples, strict=True):
        assert plain(sample) == expected[window]


def test_what_this_process_has_just_written_is_not_checked_again(shared, cache, monkeypatch):
    checked = []
    is_sound = ShardLayout.is_sound
    monkeypatch.setattr(
        ShardLayout, "is_sound", lambda *args: (checked.append(1), is_sound(*args))[1]
    )
    dataset = stream(f"local://{shared}", cache)
    # Fetched by somebody else.
    fetch_here(dataset, 3)
    for _ in dataset:
        pass
    assert len(checked) == 1
    for _ in dataset:
        pass
    assert len(checked) == 1 + NUM_SHARDS


def test_only_a_shard_that_comes_alone_takes_all_connections(made, monkeypatch):
    monkeypatch.setattr(download, "MIN_RANGE_BYTES", 100)
    with RangeServer(made) as site:
        origin = Location.parse(site.url)
        manifest = FusedManifest.load(origin / "manifest.json")
        fetched = download.Download(origin, manifest)
        content = np.empty(ShardLayout.of(manifest).num_bytes, np.uint8)
        for shard, alone in ((0, True), (1, False)):
            fetched.fetch(shard, content, alone=alone)
        asked = [path for path, _ in site.requests]
    assert asked.count("/ids/c/0/0") == download.CONNECTIONS
    assert asked.count("/ids/c/1/0") == 1


def fetch_here(dataset, shard):
    """Fetch a shard by a server in this process."""
    done, problems = threading.Event(), []

    def answer(problem):
        problems.append(problem)
        done.set()

    server.FetchServer(dataset._job, answer).request(now=shard)
    assert done.wait(60)
    if problems[0] is not None:
        raise problems[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_after_obstore_was_used(made, expected, cache, s3_url, method):
    remote = Location.parse(f"{s3_url}/store/fused/demo")
    share(made, remote)
    dataset = stream(remote.url, cache)
    next(iter(dataset))
    dataset.set_epoch(0)
    loader = StreamingLoader(dataset, 8, num_workers=2, multiprocessing_context=method, timeout=60)
    seen = [window for batch in loader for window in batch["window"].tolist()]
    assert seen == dataset.order.windows(0).tolist()
    assert len(kept(cache)) == NUM_SHARDS


def test_a_forked_worker_says_what_to_do_instead(shared, cache):
    dataset = stream(f"local://{shared}", cache, batch_size=8)
    loader = StreamingLoader(dataset, 8, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(InvalidInputError, match=r"forked worker fetches shards of .*forkserver"):
        list(loader)


def test_the_limit_is_kept_and_only_fetched_shards_are_evicted(shared, expected, cache):
    url = f"local://{shared}"
    needed = stream(url, cache).order.working_set(ROWS) + 1
    assert needed < NUM_SHARDS
    shard_bytes = stream(url, cache)._layout.num_bytes
    limit = needed * shard_bytes
    mine = cache / "stream" / "mine" / "notes.txt"
    other = cache / "stream" / "other" / "000007"
    for path in (mine, other):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 1_000)
    dataset = stream(url, cache, cache_limit=limit)
    most = 0
    for _ in range(2):
        order = dataset.order.windows(dataset.state_dict()["epoch"]).tolist()
        for window, sample in zip(order, dataset, strict=True):
            assert plain(sample) == expected[window]
            most = max(most, sum(kept(cache).values()))
    assert shard_bytes < most <= limit
    assert mine.exists()
    assert not other.exists()  # a shard of another dataset, used longest ago


def test_a_limit_below_the_working_set_fails_at_once(shared, cache):
    url = f"local://{shared}"
    dataset = stream(url, cache)
    needed = (dataset.order.working_set(ROWS) + 1) * dataset._layout.num_bytes
    stream(url, cache, cache_limit=needed)
    with pytest.raises(InvalidInputError, match=rf"{needed:,} bytes.*shuffle_span"):
        stream(url, cache, cache_limit=needed - 1)
    assert kept(cache) == {}
    stream(url, cache, cache_limit=needed // 2, shuffle_span=1)


def test_no_room_that_others_hold_is_an_error_in_the_end(shared, cache, monkeypatch):
    url = f"local://{shared}"
    limit = (stream(url, cache).order.working_set(ROWS) + 1) * stream(url, cache)._layout.num_bytes
    dataset = stream(url, cache, cache_limit=limit)
    monkeypatch.setattr(server, "_ROOM_TIMEOUT_S", 0.2)
    held = []
    for shard in range(limit // dataset._layout.num_bytes):
        fetch_here(dataset, shard)
        held.append(dataset._job.folder.open(shard))
    with pytest.raises(StorageError, match=r"are in use.*cache_limit"):
        fetch_here(dataset, 10)
    assert sorted(kept(cache)) == [f"{shard:06d}" for shard in range(len(held))]
    dataset._job.folder.close(held[2])
    fetch_here(dataset, 10)
    assert "000002" not in kept(cache)
    for file in held[:2] + held[3:]:
        file.close()


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk.folder)], check=True)


def test_a_full_disk_is_lived_with(disk, shared, expected):
    dataset = stream(f"local://{shared}", disk.folder)
    fits = dataset.order.working_set(ROWS) + 2
    assert fits < NUM_SHARDS
    disk.leave_free(fits * (dataset._layout.num_bytes + 4_096) + 16_384)
    for _ in range(2):
        assert_epoch(dataset, expected)
    assert 0 < len(kept(disk.folder)) <= fits


def test_a_disk_without_any_room_is_an_error(disk, shared, expected, monkeypatch):
    dataset = stream(f"local://{shared}", disk.folder)
    monkeypatch.setattr(server, "_ROOM_TIMEOUT_S", 0.2)
    disk.leave_free(8_192)
    with pytest.raises(StorageError, match="disk is full"):
        fetch_here(dataset, 0)
    assert kept(disk.folder) == {}
    disk.leave_free(2**24)
    assert_epoch(dataset, expected)


@pytest.mark.parametrize("name", ["ids/c/3/0", "kind/c/3"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damage_where_the_dataset_lies_is_named(shared, expected, cache, tmp_path, name, damage):
    folder = shutil.copytree(shared, tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "gone":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if damage == "changed" else content[:-9])
    dataset = stream(f"local://{folder}", cache)
    seen = []
    with pytest.raises(CorruptionError, match=name):
        seen.extend(plain(sample) for sample in dataset)
    assert "000003" not in kept(cache)
    state = dataset.state_dict()
    assert seen == [expected[window] for window in dataset.order.windows(0)[: state["position"]]]
    # Repaired, it goes on where it was.
    shutil.copy(shared / name, folder / name)
    again = stream(f"local://{folder}", cache)
    again.load_state_dict(state)
    assert len(list(again)) == len(expected) - len(seen)


def test_a_damaged_manifest_and_a_hostile_one(shared, cache, tmp_path):
    folder = shutil.copytree(shared, tmp_path / "copy")
    manifest = folder / "manifest.json"
    good = manifest.read_bytes()
    manifest.write_bytes(good.replace(b'"num_windows": 1', b'"num_windows": 2'))
    with pytest.raises(CorruptionError, match="checksum"):
        stream(folder, cache)
    manifest.write_bytes(b"[]")
    with pytest.raises(ValueError, match="manifest"):
        stream(folder, cache)
    real = FusedManifest.from_bytes(good, "x")
    huge = real.files["ids/c/0/0"].model_copy(update={"num_bytes": 2**50})
    files = {**real.files, "ids/c/0/0": huge}
    manifest.write_bytes(real.model_copy(update={"files": files}).to_bytes())
    with pytest.raises(CorruptionError, match="bytes of ids/c/0/0"):
        list(stream(folder, cache))


def test_damage_on_this_machines_disk_is_repaired(shared, expected, cache):
    dataset = stream(f"local://{shared}", cache)
    assert_epoch(dataset, expected)
    (folder,) = (path for path in (cache / "stream").iterdir() if path.is_dir())
    for number, damaged in enumerate((b"", b"short", b"\0" * dataset._layout.num_bytes)):
        (folder / f"{number:06d}").write_bytes(damaged)
    assert_epoch(dataset, expected)


def test_faults_of_the_network_are_tried_again(made, expected, cache, s3_endpoint, s3_url):
    remote = Location.parse(f"{s3_url}/store/fused/demo")
    share(made, remote)
    with FaultProxy(s3_endpoint, rate=0.1, seed=3) as proxy:
        options = {"endpoint_url": proxy.url}
        assert_epoch(stream(remote.url, cache, storage_options=options), expected)
        assert sum(proxy.happened.values()) > 3


READER = """
import sys
from fusestore.data import StreamingFusedDataset, StreamingLoader
url, cache, limit, workers = sys.argv[1:]
stream = StreamingFusedDataset(
    url, cache_dir=cache, cache_limit=int(limit) or None, seed=5, shuffle_span=24
)
for batch in StreamingLoader(stream, 1, num_workers=int(workers)):
    print(int(batch["window"]), int(batch["input_ids"].sum()), flush=True)
"""


def reading_process(url, cache, limit=0, workers=0, interpreter=None):
    return subprocess.Popen(
        [interpreter or python(), "-c", READER, url, str(cache), str(limit), str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(dataset, expected):
    order = dataset.order.windows(0).tolist()
    return [f"{window} {sum(expected[window]['input_ids'])}" for window in order]


@pytest.mark.slow
@pytest.mark.parametrize("limited", [False, True])
def test_processes_of_a_machine_fetch_each_shard_once(shared, expected, cache, limited):
    with RangeServer(shared) as site:
        dataset = stream(site.url, cache)
        spare = (dataset.order.working_set(ROWS) + 4) * dataset._layout.num_bytes
        site.requests.clear()
        # One fetches by itself, the other's workers each.
        processes = [
            reading_process(site.url, cache, spare if limited else 0, workers) for workers in (0, 2)
        ]
        answers = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], answers
        for out, _ in answers:
            assert out.splitlines() == lines_of(dataset, expected)
        asked = [path for path, _ in site.requests if path.startswith("/ids/c/")]
        assert len(set(asked)) == NUM_SHARDS
        if limited:
            assert sum(kept(cache).values()) <= spare
        else:
            assert len(asked) == NUM_SHARDS


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_in_the_way(shared, expected, cache):
    with RangeServer(shared) as site:
        dataset = stream(site.url, cache)
        process = reading_process(site.url, cache, workers=1, interpreter=sys.executable)
        process.stdout.readline()
        started = descendants(process.pid)
        assert len(started) >= 2  # a worker, and the server that it was forked from
        process.send_signal(signal.SIGKILL)
        process.communicate()
        # A worker looks after its parent every few seconds.
        deadline = time.monotonic() + 60
        while any(map(is_alive, started)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(map(is_alive, started))
        unfinished = next(path for path in (cache / "stream").iterdir() if path.is_dir())
        (unfinished / ".tmp-000011").write_bytes(b"half of it")
        (unfinished / "000011").unlink(missing_ok=True)
        assert_epoch(dataset, expected)
        assert sorted(kept(cache)) == [f"{shard:06d}" for shard in range(NUM_SHARDS)]


def descendants(pid):
    """All processes that were started by this one, by what /proc says."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                child = int(path.parent.name)
                found += [child, *descendants(child)]
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_first_samples_wait_for_few_shards(tmp_path, cache):
    """At the default span, and as many windows a shard as `fusestore fuse` makes by default."""
    made, _ = write_dataset(
        tmp_path / "local", num_tokens=16 * 4_096, window_length=64, rows_per_shard=4_096, k=1
    )
    share(made, Location.parse(tmp_path / "shared"))
    dataset = stream(f"local://{tmp_path / 'shared'}", cache, shuffle_span=1024)
    next(iter(dataset))
    first = {int(window) // 64 for window in dataset.order.windows(0)[:1]}
    assert len(first) == 1


def test_nothing_is_fetched_that_is_local(made, expected, cache):
    dataset = stream(made, cache)
    assert_epoch(dataset, expected)
    assert not cache.exists()


@pytest.fixture(scope="module")
def by_document(tmp_path_factory):
    """Both forms of a dataset whose documents of 23 tokens each begin a window."""
    root = tmp_path_factory.mktemp("document")
    made, _ = write_dataset(
        root / "local", num_tokens=9_001, window_length=16, rows_per_shard=1_000, packing="document"
    )
    share(made, Location.parse(root / "shared"))
    return {"local": root / "local", "shared": root / "shared"}


def test_windows_by_document(by_document, cache):
    expected = windows_of(by_document["local"])
    assert [len(window["input_ids"]) for window in expected[:4]] == [16, 7, 16, 7]
    assert len(expected) == 783
    assert_epoch(stream(by_document["local"], cache), expected)
    states = []
    for form, folder in by_document.items():
        dataset = stream(f"local://{folder}", cache)
        assert len(dataset) == 783
        for _ in range(2):
            assert_epoch(dataset, expected)
        states.append(dataset.state_dict())
        assert form == "local" or states[0] == states[1]
    with RangeServer(by_document["shared"]) as site:
        dataset = stream(site.url, cache / "http")
        loader = StreamingLoader(dataset, 4)
        assert [n for batch in loader for n in batch["window"].tolist()] == (
            dataset.order.windows(0).tolist()
        )


@pytest.mark.parametrize("form", ["local", "shared"])
def test_a_damaged_table_of_windows(by_document, cache, tmp_path, form):
    folder = shutil.copytree(by_document[form], tmp_path / "copy")
    path = folder / ("local" if form == "shared" else "") / "window_starts/c/0"
    good = path.read_bytes()
    for damaged, message in (
        (good[:8] + b"\1" + good[9:], "window_starts/c/0 does not match its checksum"),
        (good[:-1], "window_starts/c/0 does not match its checksum"),
        (None, "window_starts/c/0 is missing"),
    ):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(CorruptionError, match=message):
            stream(f"local://{folder}", cache)
        path.write_bytes(good)
    manifest = FusedManifest.load(Location.parse(folder / "manifest.json"))
    name = "window_starts/c/0" if form == "local" else "local/window_starts/c/0"
    # Whoever made a table can make its checksum: what it says is looked at, too.
    hostile = np.frombuffer(good[:-4], "<i8").copy()
    hostile[3] = hostile[2]
    path.write_bytes(hostile.tobytes() + good[-4:])
    listed = {**manifest.files, name: FileRecord.of(path.read_bytes())}
    (folder / "manifest.json").write_bytes(manifest.model_copy(update={"files": listed}).to_bytes())
    with pytest.raises(CorruptionError, match="does not divide"):
        stream(f"local://{folder}", cache)
    huge = {**manifest.files, name: FileRecord(num_bytes=2**50, sha256="0" * 64)}
    for changes in ({"files": huge}, {"num_windows": 2**47}, {"num_windows": 9_002}):
        (folder / "manifest.json").write_bytes(manifest.model_copy(update=changes).to_bytes())
        with pytest.raises(CorruptionError, match=r"bytes of .*window_starts"):
            stream(f"local://{folder}", cache)


def test_no_tokens(shared, cache, tmp_path):
    manifest = FusedManifest.load(Location.parse(shared / "manifest.json"))
    empty = manifest.model_copy(update={"num_tokens": 0})
    empty.save(Location.parse(tmp_path / "empty/manifest.json"))
    with pytest.raises(InvalidInputError, match="nothing to train"):
        stream(tmp_path / "empty", cache)


def test_fetching_imports_nothing_heavy(shared, cache):
    code = (
        "import sys, json; from fusestore.data import StreamingFusedDataset;"
        "import fusestore.data.on_demand, fusestore.data.shard_maker;"
        "heavy = {'polars', 'zarr', 'obstore', 'transformers'};"
        "imported = (heavy | {'numba'}) & set(sys.modules);"
        "list(StreamingFusedDataset(sys.argv[1], cache_dir=sys.argv[2]));"
        "print(json.dumps(sorted(imported | heavy & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"local://{shared}", str(cache)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert json.loads(done.stdout) == []
