"""`fusestore merge`: the same model merged, fused and trained plainly, in one listing or table."""

import pytest

import fusestore as fs
from fusestore.store.layout import Store


def test_merged_and_trained_models_are_listed_with_their_scores(command, store):
    both = [store / "models" / name for name in ("baseline", "fused")]
    merge = ["merge", *both, "--store", store, "--name", "mean"]
    merge += ["--evaluate", "addresses/held_out"]
    shown = command.succeeds(*merge, "--weight", "1", "--weight", "3").out
    assert "Merged mean" in shown
    assert "on addresses/held_out: bits_per_byte" in shown
    told = command.succeeds(*merge, "--weight", "1", "--weight", "3", "--json").json
    assert told["built"] is False
    assert told["merge"]["settings"]["weights"] == [1.0, 3.0]
    bits = told["evaluation"]["metrics"]["bits_per_byte"]
    listed = command.succeeds("ls", "--store", store).out
    assert f"linear merge of 2 models, held-out bits per byte {bits:.4f}" in listed
    assert listed.count("held-out bits per byte") == 3
    assert command.succeeds("verify", "--store", store).code == 0
    assert "Choose another name" in command.fails(*merge)
    assert "Choose another name" in command.fails(*merge[:-4], "--name", "fused")


def test_what_cannot_be_merged_is_explained(command, job, store):
    merge = ["merge", "--store", store, "--name", "new"]
    message = command.fails(*merge, job / "small", job / "wide")
    assert "different architectures" in message
    assert "fuse their distributions" in message
    assert "--base" in command.fails(*merge, job / "small", job / "small", "--method", "ties")
    outcome = command(*merge, job / "small", job / "small", "--method", "mean")
    assert outcome.code == 2
    assert "slerp" in outcome.err
    assert "absent" in command.fails(*merge, job / "small", job / "absent")
    assert not (store / "models" / "new").exists()


@pytest.mark.slow
def test_merged_ensemble_and_fused_are_compared_in_one_table(command, job, store, s3_url):
    both = [store / "models" / name for name in ("baseline", "fused")]
    evaluate = ["--evaluate", "addresses/held_out"]
    merged = command.succeeds("merge", *both, "--store", store, *evaluate, "--json").json
    compare = ["compare", job / "small", "--store", store, *evaluate]
    compare += ["--source", "small", "--source", "wide"]
    compare += ["--target", "small"]
    told = command.succeeds(*compare, "--json").json
    rows = {row["name"]: row for row in told["rows"]}
    assert rows.keys() == {
        "model/baseline", "model/fused", "model/merged", str(job / "small"),
        "cache/small", "cache/wide", "ensemble",
    }  # fmt: skip
    scores = [row["bits_per_byte"] for row in told["rows"]]
    assert scores == sorted(scores)
    # The same figures as where each was made.
    bits = {name: row["bits_per_byte"] for name, row in rows.items()}
    assert bits["model/merged"] == merged["evaluation"]["metrics"]["bits_per_byte"]
    assert abs(bits["cache/small"] - bits[str(job / "small")]) < 1e-3
    assert rows["cache/small"]["covered"] == 1.0
    assert "linear merge of 2 models" in rows["model/merged"]["made"]
    remote = f"{s3_url}/store"
    fs.sharing.copy_artifacts(Store.open(store), Store.open(remote), None)
    there = command.succeeds("compare", "--store", remote, *evaluate, "--json").json
    assert {row["name"]: row["bits_per_byte"] for row in there["rows"]} == {
        name: score for name, score in bits.items() if name.startswith("model/")
    }
    shown = command.succeeds(*compare).out
    assert "uniform mixture of small, wide" in shown
    assert f"{bits['ensemble']:.4f}" in shown


def test_what_cannot_be_compared_is_explained(command, job, store):
    evaluate = ["--evaluate", "addresses/held_out"]
    assert command("compare", "--store", store, *evaluate, "--source", "small").code == 2
    assert "absent" in command.fails("compare", "--store", store, "--evaluate", "absent/held_out")
    wrong = ["--evaluate", "addresses/absent"]
    assert "'absent'" in command.fails("compare", "--store", store, *wrong)
    message = command.fails("compare", job / "absent", "--store", store, *evaluate)
    assert "absent" in message
