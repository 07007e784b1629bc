"""The whole pipeline: complete, repeatable to the byte, and doing only what is missing."""

import json
import shutil

import pytest
import torch

from fusestore.errors import FingerprintMismatchError
from fusestore.storage.location import Location
from tests.helpers.tiny_job import (
    TOP_K,
    hashes,
    run_fusion,
    write_fusion,
)

CORPUS, SMALL, WIDE = "corpus addresses", "cache small", "cache wide"
ALIGNMENT, FUSED = "alignment wide--small", "fused dataset mince"
BASELINE, FUSED_MODEL = "model baseline", "model fused"
STAGES = [CORPUS, SMALL, WIDE, ALIGNMENT, FUSED, BASELINE, FUSED_MODEL]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def store_url(request, tmp_path):
    if request.param == "local":
        return str(tmp_path / "store")
    return request.getfixturevalue("s3_url") + "/shared/store"


def test_a_run_completes_and_a_second_one_has_nothing_to_do(store_url, job, first_store, tmp_path):
    fusion = write_fusion(tmp_path, job, store_url)
    summary, lines = run_fusion(fusion)
    assert lines.built == STAGES
    again, lines = run_fusion(fusion)
    assert lines.built == []
    assert lines.found == STAGES
    assert again == summary
    # The store does not tell where it lies, nor where its inputs lay.
    assert hashes(Location.parse(store_url)) == hashes(Location.parse(first_store))


def test_the_summary_holds_together(store, job, tmp_path):
    summary, _ = run_fusion(write_fusion(tmp_path, job, str(store)))
    (fusion,) = summary.fusions
    assert fusion.name == "mince"
    small, wide = fusion.sources
    assert (small.name, wide.name) == ("small", "wide")
    assert (small.aligned_span, small.aligned_mined) == (1, 0)
    assert 0.4 < wide.aligned_span < 1
    assert small.documents_won + wide.documents_won == pytest.approx(1)
    for source in fusion.sources:
        assert 0 < source.bits_per_byte < 10
        assert source.bytes_per_token > TOP_K
    assert sum(fusion.kinds.values()) == fusion.num_tokens
    assert {kind for kind, count in fusion.kinds.items() if count} == {"none", "span", "inside"}
    baseline, fused = summary.models
    assert (baseline.objective, fused.objective) == ("clm", "fuse")
    assert baseline.bits_per_byte_before == fused.bits_per_byte_before
    assert baseline.num_tokens == fused.num_tokens
    for model in summary.models:
        assert model.bits_per_byte_after < model.bits_per_byte_before
    assert baseline.bits_per_byte_after != fused.bits_per_byte_after
    (content,) = json.loads(summary.model_dump_json())["fusions"]
    assert content["num_tokens"] == fusion.num_tokens
    assert summary.conclusion is None
    titles = [title for title, _, _ in summary.tables()]
    assert len(titles) == 2


def test_baseline_and_fusion_see_the_same_tokens_in_the_same_order(first_store):
    baseline, fused = (
        json.loads((first_store / "models" / name / "manifest.json").read_bytes())
        for name in ("baseline", "fused")
    )
    assert baseline["plan"]["dataset_digest"] == fused["plan"]["dataset_digest"]
    assert baseline["plan"]["settings"]["seed"] == fused["plan"]["settings"]["seed"]
    assert baseline["num_tokens"] == fused["num_tokens"]
    first, other = baseline["loss_curve"][0], fused["loss_curve"][0]
    assert first["loss"] == first["lm"] == pytest.approx(other["lm"], rel=1e-6)
    assert other["loss"] == pytest.approx(0.5 * other["lm"] + 0.5 * other["fused"])
    # The weights differ from the second step on, by one small step: its text is still the same.
    for left, right in zip(baseline["loss_curve"], fused["loss_curve"], strict=True):
        assert left["lm"] == pytest.approx(right["lm"], rel=1e-2)


def test_each_run_has_its_own_logs(store, job, tmp_path):
    logs = tmp_path / "logs"
    change = ('evaluate_split = "held_out"', f'evaluate_split = "held_out"\nlog_dir = "{logs}"')
    fusion = write_fusion(tmp_path, job, str(store), change)
    before = hashes(Location.parse(store))
    shutil.rmtree(store / "models")
    _, lines = run_fusion(fusion)
    assert lines.built == [BASELINE, FUSED_MODEL]
    assert {path.name: len(list(path.iterdir())) for path in logs.iterdir()} == {
        "baseline": 1,
        "fused": 1,
    }
    assert hashes(Location.parse(store)) == before


def test_trained_models_load_in_transformers(store_url, first_store, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store = Location.parse(store_url)
    put(first_store, store)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in (store / "models/fused").list():
        (folder / name).write_bytes((store / "models/fused" / name).read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = model(**tokenizer("Fellow citizens", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    assert torch.isfinite(logits).all()


def put(folder, store):
    """Copy a local store to another place, by its files alone."""
    from fusestore.storage.publish import publish

    for name, data in (
        (name, (folder / name).read_bytes()) for name in hashes(Location.parse(folder))
    ):
        publish(store / name, data)


def repeats(deleted, rebuilt):
    return pytest.param(deleted, rebuilt, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("deleted", "rebuilt"),
    [
        repeats("corpora/addresses", STAGES),
        repeats("caches/small", [SMALL, FUSED, BASELINE, FUSED_MODEL]),
        ("caches/wide", [WIDE, ALIGNMENT, FUSED, BASELINE, FUSED_MODEL]),
        repeats("vocabulary_maps", [ALIGNMENT, FUSED, BASELINE, FUSED_MODEL]),
        repeats("alignments/wide--small", [ALIGNMENT, FUSED, BASELINE, FUSED_MODEL]),
        repeats("fused/mince", [FUSED, BASELINE, FUSED_MODEL]),
        repeats("models/baseline", [BASELINE]),
        repeats("models/fused", [FUSED_MODEL]),
        # Kept for convenience, by no stage of their own.
        repeats("vocabularies", []),
        ("corpora/addresses/tokens", []),
    ],
)
def test_what_is_deleted_is_made_again_with_what_depends_on_it(
    deleted, rebuilt, store, first_store, job, tmp_path
):
    shutil.rmtree(store / deleted)
    _, lines = run_fusion(write_fusion(tmp_path, job, str(store)))
    assert lines.built == rebuilt
    assert lines.found == [stage for stage in STAGES if stage not in rebuilt]
    assert hashes(Location.parse(store)) == hashes(Location.parse(first_store))


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("corpora/addresses", marks=pytest.mark.slow),
        pytest.param("caches/wide", marks=pytest.mark.slow),
        "fused/mince",
    ],
)
def test_a_deletion_that_was_cut_short_is_no_finished_stage(
    stage, store, first_store, job, tmp_path, monkeypatch
):
    """Ctrl-C while what depends on a rebuilt stage is being deleted."""
    shutil.rmtree(store / stage)
    fusion = write_fusion(tmp_path, job, str(store))

    def cut_short(path, *_args, **_kwargs):
        for number, file in enumerate(sorted(p for p in path.rglob("*") if p.is_file())):
            if number % 2 == 0:
                file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            run_fusion(fusion)
    run_fusion(fusion)
    assert hashes(Location.parse(store)) == hashes(Location.parse(first_store))


def test_other_settings_are_refused_and_nothing_is_lost(store, job, tmp_path):
    before = hashes(Location.parse(store))
    with pytest.raises(FingerprintMismatchError, match=r"top_k.*8.*4"):
        run_fusion(write_fusion(tmp_path, job, str(store), ("top_k = 8", "top_k = 4")))
    assert hashes(Location.parse(store)) == before
