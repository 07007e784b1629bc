"""`fusestore push`, `pull` and `sync` as a user runs them, killed in the middle among others."""

import shutil
import signal
import sys
import time

import pytest

from fusestore.cache.reader import open_cache
from fusestore.errors import NotFoundError
from fusestore.store.layout import Store
from tests.helpers.command import Command, start
from tests.helpers.tiny_job import hashes


@pytest.fixture
def command(capsys, monkeypatch):
    return Command(capsys, monkeypatch)


def test_push_and_pull(command, store, tmp_path):
    target, back = tmp_path / "target", tmp_path / "back"
    pushed = command.succeeds("push", "fused/mince", "--with-inputs", "-s", store, "--to", target)
    assert "Copied fused/mince" in pushed.out
    assert "Copying" in pushed.err
    pulled = command.succeeds(
        "pull", "fused/mince", "--from", target, "--to", back, "--jobs", "3", "--json"
    ).json
    assert [result["artifact"] for result in pulled["artifacts"]] == ["fused/mince"]
    again = command.succeeds("pull", "fused/mince", "--from", target, "-s", back, "--check")
    assert again.out.startswith("Already there: fused/mince")
    command.succeeds("verify", "-s", target)
    command.succeeds("verify", "-s", back)


def test_sync(command, store, tmp_path, unpacked):
    other = tmp_path / "other"
    assert "Copied model/fused" in command.succeeds("sync", "--from", store, "--to", other).out
    shutil.rmtree(store / "caches/wide")
    outcome = command.succeeds("sync", "-s", store, "--to", other)
    assert f"Copied cache/wide to {store}" in outcome.out
    assert hashes(Store.open(other).location) == unpacked
    assert hashes(Store.open(store).cache("wide")) == hashes(Store.open(other).cache("wide"))


def test_two_servers_with_options_of_their_own(
    command, store, s3_url, s3_endpoint, monkeypatch, tmp_path
):
    """Each side has its own endpoint and credentials; nothing comes from the environment."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    def options(side, key):
        pairs = {"endpoint_url": s3_endpoint, "key": key, "secret": "x"}
        return [f"--{side}-storage-option={name}={value}" for name, value in pairs.items()]

    one, two = f"{s3_url}/one", f"{s3_url}/two"
    command.succeeds("push", "cache/wide", "-s", store, "--to", one, *options("to", "a"))
    arguments = ["push", "cache/wide", "--from", one, "--to", two]
    command.succeeds(*arguments, *options("from", "b"), *options("to", "c"))
    pull = ["pull", "cache/wide", "--from", two, "--to", tmp_path / "back"]
    command.succeeds(*pull, *options("from", "d"))
    there = hashes(Store.open(tmp_path / "back").cache("wide"))
    assert there == hashes(Store.open(store).cache("wide"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["push", "--from", "a", "--to", "b"],
        ["push", "cache/wide", "--all", "--from", "a", "--to", "b"],
        ["pull", "cache/wide", "--from", "a"],
        ["pull", "cache/wide", "--from", "a", "--to", "b", "--from-storage-option", "nonsense"],
        ["push", "cache/wide", "--from", "a", "--to", "b", "--jobs", "0"],
    ],
)
def test_wrong_usage(command, arguments):
    assert command(*arguments).code == 2


def test_failures_are_explained(command, store, tmp_path):
    arguments = ["--from", store, "--to", tmp_path / "target"]
    assert "It holds:" in command.fails("push", "cache/none", *arguments)
    (store / "caches/wide/manifest.json").unlink()
    assert "not complete" in command.fails("push", "cache/wide", *arguments)
    outcome = command.succeeds("push", "--all", *arguments)
    assert "left out: cache/wide" in outcome.err
    damaged = store / "fused/mince/ids/c/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    message = command.fails("pull", "fused/mince", "--from", store, "--to", tmp_path / "other")
    assert "fused/mince/ids/c/0/0 is damaged" in message


def test_a_hub_that_cannot_be_reached_is_explained(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = command.fails("pull", "cache/x", "--from", "hf://datasets/me/x", "--to", tmp_path)
    assert "hf://datasets/me/x" in message


def written(folder):
    """Files that are there for good."""
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".tmp-")]


@pytest.mark.parametrize(
    "after", [pytest.param(1, marks=pytest.mark.slow), 5, pytest.param(12, marks=pytest.mark.slow)]
)
def test_a_killed_pull_is_unfinished_and_goes_on(command, store, s3_url, tmp_path, after):
    """`kill -9` as soon as that many files are there, from object storage, one at a time."""
    command.succeeds("push", "cache/small", "--from", store, "--to", s3_url)
    target = tmp_path / "target"
    arguments = ["pull", "cache/small", "--from", s3_url, "--to", target, "--jobs", "1"]
    process = start(*arguments, interpreter=sys.executable)
    folder = target / "caches/small"
    while process.poll() is None and len(written(folder)) < after:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    process.stderr.close()
    with pytest.raises(NotFoundError, match="is not complete"):
        open_cache(target, "small")
    whole = hashes(Store.open(store).cache("small"))
    for path in written(folder):
        assert (
            hashes(Store.open(folder).location)[path.relative_to(folder).as_posix()]
            == (whole[path.relative_to(folder).as_posix()])
        )
    (result,) = command.succeeds(*arguments, "--json").json["artifacts"][1:]
    assert 0 < result["num_files"] <= len(whole)
    assert hashes(Store.open(target).cache("small")) == whole
