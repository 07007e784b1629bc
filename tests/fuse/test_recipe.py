"""Recipes: what they accept, what they suggest, and their digests."""

import json

import pytest

from fusestore.errors import InvalidInputError, NotFoundError
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.recipe import Recipe, load_recipe
from fusestore.storage.location import Location

MINIMAL = {"corpus": "c", "split": "train", "target": "f" * 64, "sources": [{"cache": "a"}]}

TOML = """
corpus = "c"
split = "train"
target = "{target}"
strategy = "weighted"
kinds = ["span", "mined"]

[[sources]]
cache = "a"
weight = 2.0

[[sources]]
cache = "b"
"""


def test_defaults_are_the_valid_ones():
    recipe = Recipe.parse(MINIMAL)
    assert (recipe.strategy, recipe.score, recipe.granularity) == (
        "uniform",
        "bits_per_byte",
        "document",
    )
    assert (recipe.kinds, recipe.unaligned, recipe.top_k) == (("span", "inside"), "skip", 32)


def test_toml_and_json_of_the_same_content_have_one_digest(tmp_path):
    text = TOML.format(target="t" * 64)
    (tmp_path / "r.toml").write_text(text)
    recipe = load_recipe(Location.parse(tmp_path / "r.toml"))
    assert [source.weight for source in recipe.sources] == [2.0, 1.0]
    (tmp_path / "r.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    again = load_recipe(Location.parse(tmp_path / "r.json"))
    assert again == recipe
    assert again.digest == recipe.digest
    assert Recipe.parse({**recipe.model_dump(), "top_k": 8}).digest != recipe.digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"granularty": "token"}, "'granularty' is not a key of the recipe. Did you mean 'granul"),
        ({"sources": [{"cahce": "a"}]}, "source 1 of the recipe. Did you mean 'cache'"),
        ({"xyzzy": 1}, "Keys are: preset, sources, target, corpus, split"),
        ({"score": "perplexity"}, "score: .*bits_per_byte"),
        ({"kinds": ["label"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"min_probability": 0.0}, "min_probability"),
        ({"min_probability": 1.0}, "min_probability"),
        ({"logprob_step": 0.0}, "logprob_step"),
        ({"logprob_step": 2.0}, "logprob_step"),
        ({"top_k": 0}, "top_k"),
        ({"sources": []}, "sources"),
        ({"sources": [{"cache": "a"}, {"cache": "a"}]}, "listed twice"),
        ({"strategy": "single", "sources": [{"cache": "a"}, {"cache": "b"}]}, "takes one source"),
        ({"strategy": "weighted", "sources": [{"cache": "a", "weight": 0}]}, "positive"),
        ({"sources": [{"cache": "a", "weight": 2.0}]}, "does not use weights"),
        ({"unaligned": "target"}, "name the target's cache"),
        ({"target_cache": "a"}, "only used with"),
    ],
)
def test_bad_recipes_say_what_is_wrong(change, message):
    with pytest.raises(InvalidInputError, match=message):
        Recipe.parse({**MINIMAL, **change})


def test_a_missing_key_is_named():
    with pytest.raises(InvalidInputError, match="sources: Field required"):
        Recipe.parse({key: value for key, value in MINIMAL.items() if key != "sources"})


def test_a_strategy_is_looked_up_when_a_recipe_is_made():
    for make in (
        lambda: Recipe.parse({**MINIMAL, "strategy": "mincee"}),
        lambda: Recipe(sources=["a"], strategy="mincee"),
    ):
        with pytest.raises(
            ValueError, match=r"No strategy is named 'mincee'\. Did you mean 'mince'"
        ):
            make()


def test_sources_may_be_names_and_names_with_weights():
    recipe = Recipe(sources=["a", "b"])
    assert recipe == Recipe.parse({"sources": [{"cache": "a"}, {"cache": "b"}]})
    assert recipe.digest == Recipe.parse({"sources": ["a", {"cache": "b"}]}).digest
    weighted = Recipe.parse({"sources": ["a=3", "b"], "strategy": "weighted"})
    assert [(source.cache, source.weight) for source in weighted.sources] == [("a", 3), ("b", 1)]
    with pytest.raises(InvalidInputError, match=r"sources\.0\.weight"):
        Recipe.parse({"sources": ["a=much"], "strategy": "weighted"})


def test_the_order_of_kinds_means_nothing():
    digests = {
        Recipe(sources=["a"], kinds=kinds).digest
        for kinds in (["span", "mined"], ["mined", "span"])
    }
    assert len(digests) == 1


def test_a_kept_plan_of_a_strategy_that_is_not_registered_is_readable():
    recipe = {**Recipe.parse(MINIMAL).model_dump(mode="json"), "strategy": "somebody_elses"}
    plan = FusionPlan.model_validate(
        {
            "recipe": recipe,
            "corpus_digest": "c" * 64,
            "inputs": [],
            "target_cache_digest": None,
            "vocab_size": 9,
            "sampled": False,
            "num_tokens": 1,
            "num_documents": 1,
            "tokens_digest": "",
            "documents_digest": "",
        }
    )
    assert plan.recipe.strategy == "somebody_elses"


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(NotFoundError):
        load_recipe(Location.parse(tmp_path / "absent.toml"))
    for name, text in (("a.toml", "corpus ="), ("b.json", "[1]"), ("c.json", "{")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InvalidInputError, match=name):
            load_recipe(Location.parse(tmp_path / name))
    (tmp_path / "d.toml").write_text(TOML.format(target="t") + "wieght = 1.0\n")
    with pytest.raises(InvalidInputError, match=r"source 2 of .*d\.toml.*'weight'"):
        load_recipe(Location.parse(tmp_path / "d.toml"))
    (tmp_path / "e.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match=r"e\.toml"):
        load_recipe(Location.parse(tmp_path / "e.toml"))
