"""`fusestore fuse`: define, make the shards, share."""

import json

import pytest

from fusestore import open_fused
from fusestore.storage.location import Location
from tests.helpers.tiny_job import hashes


@pytest.fixture
def recipe(store, tmp_path):
    """The recipe of the store's fused dataset, as a person would write it."""
    plan = json.loads((store / "fused/mince/fingerprint.json").read_text())
    path = tmp_path / "mince.toml"
    path.write_text(
        f"""
corpus = "addresses"
split = "train"
target = "{plan["recipe"]["target"][:16]}"
strategy = "mince"
top_k = 8
window_length = 64
rows_per_shard = 1024

[[sources]]
cache = "small"

[[sources]]
cache = "wide"
"""
    )
    return path


def test_a_recipe_is_defined_at_once_and_filled_when_asked(command, store, recipe):
    finished = hashes(Location.parse(store) / "fused/mince")
    told = command.succeeds("fuse", recipe, "--store", store, "--name", "again", "--json").json
    assert (told["built"], told["complete"]) == (True, False)
    assert not (store / "fused/again/manifest.json").exists()
    shown = command.succeeds("fuse", recipe, "--store", store, "--name", "again").out
    assert shown.startswith("Already there: again: ")
    assert "0 of " in shown
    listed = command.succeeds("ls", "--store", store).out
    assert "again" in listed
    assert "made when they are read" in listed
    open_fused(store, "again")[0]
    assert "fused/again: sound" in command.succeeds("verify", "fused/again", "--store", store).out
    file = store / "fused/again/tail/c/0"
    sound = file.read_bytes()
    file.write_bytes(b"x" + sound[1:])
    assert "tail/c/0" in command("verify", "fused/again", "--store", store).out
    file.write_bytes(sound)
    filled = command.succeeds("fuse", "--name", "again", "--store", store, "--materialize")
    assert filled.out.startswith("Fused again: ")
    assert hashes(Location.parse(store) / "fused/again") == finished
    told = command.succeeds(
        "fuse", "--name", "again", "--store", store, "--materialize", "--json"
    ).json
    assert (told["built"], told["complete"]) == (False, True)
    unnamed = command.succeeds("fuse", recipe, "--store", store, "--json").json
    assert unnamed["fused"] == f"recipe-{told['plan_digest'][:16]}"


def test_training_on_a_dataset_that_was_only_defined(command, job, store, recipe):
    command.succeeds("fuse", recipe, "--store", store, "--name", "again")
    train = ["--lr", "1e-3", "--batch-size", "4", "--max-steps", "4", "--precision", "float32"]
    command.succeeds(
        *["train", f"{job}/small", "--name", "late", "--fused", "again", *train],
        *["--evaluate", "addresses/held_out", "--store", store],
    )
    assert hashes(Location.parse(store) / "models/late") == hashes(
        Location.parse(store) / "models/fused"
    )


def test_sharing_and_taking(command, store, tmp_path, s3_url):
    before = hashes(Location.parse(store) / "fused/mince")
    shared = f"{s3_url}/shared.store"
    told = command.succeeds(
        "fuse", "-n", "mince", "-s", store, "--shared-to", shared, "--json"
    ).json
    assert told["built"] is True
    again = command.succeeds(
        "fuse", "-n", "mince", "-s", store, "--shared-to", shared, "--json"
    ).json
    assert again["built"] is False
    assert hashes(Location.parse(store) / "fused/mince") == before
    taken = tmp_path / "taken.store"
    shown = command.succeeds("pull", "fused/mince", "--to", taken, "--from", shared).out
    assert "Copied fused/mince" in shown
    assert hashes(Location.parse(taken) / "fused/mince") == before
    assert command.succeeds("verify", "-s", taken).code == 0
    assert command.succeeds("verify", "-s", shared).code == 0


def test_what_is_wrong_with_a_recipe_file(command, store, recipe):
    before = hashes(Location.parse(store))
    recipe.write_text("granularty = 'token'\n" + recipe.read_text())
    message = command.fails("fuse", recipe, "--store", store)
    assert "mince.toml" in message
    assert "Did you mean 'granularity'" in message
    message = command.fails("fuse", "--name", "absent", "--store", store, "--materialize")
    assert "No fused dataset was begun" in message
    assert hashes(Location.parse(store)) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe.toml", "--source", "small"],
        ["--name", "x", "--jobs", "2"],
        ["--name", "x", "--top-k", "4"],
        ["--name", "x", "--from", "s3://x/y"],
    ],
)
def test_options_that_do_not_go_together(command, tmp_path, arguments):
    assert command("fuse", *arguments, "--store", tmp_path).code == 2


def test_a_recipe_may_leave_out_all_but_its_sources(command, store, recipe, tmp_path):
    """Names, options and a whole file are one plan."""
    recipe.write_text(recipe.read_text().replace('strategy = "mince"\n', ""))
    short = tmp_path / "short.toml"
    short.write_text(
        'sources = ["small", "wide"]\ntarget = "small"\ntop_k = 8\nwindow_length = 64\n'
        "rows_per_shard = 1024\n"
    )
    plans = [
        command.succeeds("fuse", *arguments, "-s", store, "-n", f"again-{number}", "--json").json
        for number, arguments in enumerate(
            [
                [recipe],
                [short],
                [short, "--top-k", "8", "--target", "small"],
                [
                    *["--source", "small", "--source", "wide", "--target", "small", "-k", "8"],
                    *["--window-length", "64", "--rows-per-shard", "1024"],
                ],
            ]
        )
    ]
    assert all(plan["plan"] == plans[0]["plan"] for plan in plans)
    assert plans[0]["plan"]["recipe"]["corpus"] == "addresses"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "mincee"], "Did you mean 'mince'"),
        (["--source", "small"], "listed twice"),
        (["--strategy", "weighted", "--source", "wide=x"], "--source"),
        (["--kind", "spam"], "'span'"),
        (["--unaligned", "target"], "name the target's cache"),
    ],
)
def test_a_wrong_recipe_is_refused_before_the_store_is_opened(command, arguments, message):
    refused = command("fuse", "--source", "small", *arguments, "--store", "s3://absent/store")
    assert refused.code == 2
    assert message in " ".join(refused.err.split())
