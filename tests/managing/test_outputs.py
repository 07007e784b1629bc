"""What commands print with --json fits the published schemas."""

from pathlib import Path

import pytest

from tests.helpers.json_outputs import KEPT_STORE_LINES
from tests.helpers.output_schemas import check
from tests.helpers.tiny_job import write_fusion


@pytest.mark.parametrize("line", KEPT_STORE_LINES)
def test_a_command_prints_what_its_schema_says(store, command, tmp_path, line):
    arguments = line.format(tmp=tmp_path / "other", store=store).split()
    if arguments[0] != "pull":
        arguments += ["--store", str(store)]
    check(command.succeeds(*arguments, "--json").json, KEPT_STORE_LINES[line])


def test_what_is_damaged_fits_too(store, command):
    (store / "caches/wide/zarr.json").write_bytes(b"x")
    (store / "caches/small/manifest.json").unlink()
    outcome = command("verify", "--store", store, "--json")
    assert outcome.code == 1
    check(outcome.json, "output-verify")
    check(command("verify", "--store", store, "--repair", "--json").json, "output-repair")
    check(command.succeeds("show", "cache/small", "-s", store, "--json").json, "output-show")
    check(command.succeeds("ls", "-s", store, "--json").json, "output-ls")


def test_a_run_says_what_it_would_do(store, command, tmp_path):
    fusion = write_fusion(tmp_path, Path("/nowhere"), str(store))
    before = set(store.rglob("*"))
    planned = command.succeeds("run", fusion, "--dry-run", "--json").json
    check(planned, "output-run-dry-run")
    states = {stage["artifact"]: stage["state"] for stage in planned["stages"]}
    assert states["corpus/addresses"] == states["cache/wide"] == "already there"
    (store / "caches/wide/manifest.json").unlink()
    planned = command.succeeds("run", fusion, "--dry-run", "--json").json
    states = {stage["artifact"]: stage["state"] for stage in planned["stages"]}
    assert states["cache/small"] == "already there"
    assert states["cache/wide"] == "continue"
    assert states["alignment/wide--small"] == states["fused/mince"] == "make again"
    assert states["model/fused"] == "make again"
    shown = command.succeeds("run", fusion, "--dry-run", "-s", tmp_path / "empty").out
    assert shown.count(" make") >= 5
    assert not (tmp_path / "empty").exists()
    assert before >= set(store.rglob("*"))


def test_a_dry_run_copies_nothing_and_counts_right(store, command, tmp_path):
    other = tmp_path / "other"
    arguments = ["push", "fused/mince", "--with-inputs", "-s", store, "--to", other, "--json"]
    planned = command.succeeds(*arguments, "--dry-run").json
    assert not other.exists()
    copied = command.succeeds(*arguments).json
    assert copied == {**planned, "dry_run": False}
    again = command.succeeds(*arguments, "--dry-run").json
    assert (again["num_files"], again["num_bytes"]) == (0, 0)
    assert all(each["already_there"] for each in again["artifacts"])
    synced = command.succeeds("sync", "-s", store, "--to", other, "--dry-run").out
    assert "Would copy model/fused" in synced
    assert "Already there: cache/wide" in synced
    assert not (other / "models").exists()
