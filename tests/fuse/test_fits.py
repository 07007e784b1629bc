"""Fits in a store: made once, found again, refused where they do not belong."""

from itertools import product
from typing import get_args

import numpy as np
import pytest

from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.forecast.run import forecast
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.choices import LEARNED, FitMethod
from fusestore.fuse.fits import fit_data
from fusestore.fuse.fits.domains import domain_of
from fusestore.fuse.fits.find_fits import load_fit
from fusestore.fuse.observation import CHUNK_ROWS, chunk_starts
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.resolve import find_inputs
from fusestore.fuse.run import fuse
from fusestore.fuse.shard import fuse_rows
from fusestore.fuse.strategies import register_strategy
from fusestore.store.inventory import describe, list_artifacts
from fusestore.workflows.verification import verify_store
from tests.helpers.small_store import make_small_store


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fits")
    return make_small_store(folder / "store", folder, held_out=12)


def recipe_of(small, **changes):
    return Recipe.parse(small.recipe(**changes))


def test_a_fit_is_made_once_kept_by_digest_and_verified(small):
    recipe = recipe_of(small, strategy="em", fit_by="entropy")
    assert small.store.names("fits") == []
    inputs = find_inputs(small.store, recipe)
    [name] = small.store.names("fits")
    assert inputs.recipe.fit.startswith(name)
    again = find_inputs(small.store, recipe)
    assert again.recipe == inputs.recipe
    assert small.store.names("fits") == [name]
    named = find_inputs(small.store, recipe_of(small, strategy="em", fit=name))
    assert named.recipe.digest == inputs.recipe.digest
    [artifact] = [each for each in list_artifacts(small.store) if each.kind.name == "fit"]
    assert artifact.state == "complete"
    assert describe(artifact).startswith("em by entropy of own + other, fitted on ")
    assert verify_store(small.store)[artifact.path] == []
    fuse(small.store, "learned", recipe)
    [fused] = [each for each in list_artifacts(small.store) if each.kind.name == "fused"]
    assert inputs.recipe.fit in [given.digest for given in fused.kind.inputs(fused.manifest)]


@pytest.mark.parametrize(
    ("least", "keep_label", "temperature"),
    [
        pytest.param(
            least,
            keep_label,
            temperature,
            # All on or all off; what is between them repeats.
            marks=[pytest.mark.slow] * (len({least is not None, keep_label, temperature}) > 1),
        )
        for least, keep_label, temperature in product([None, 0.05], [False, True], [False, True])
    ],
)
def test_rows_are_whole_whatever_the_shards_and_the_same_every_time(
    small, temperature, keep_label, least
):
    choices = {"fit_temperature": temperature, "keep_label": keep_label, "min_probability": least}
    for strategy in LEARNED:
        recipe = recipe_of(small, strategy=strategy, **choices)
        first = find_inputs(small.store, recipe, save_fit=False)
        second = find_inputs(small.store, recipe, save_fit=False)
        assert first.recipe.fit == second.recipe.fit
        assert first.fitted.manifest.nats_fitted <= first.fitted.manifest.nats_even + 0.05
        rows, totals = fuse_rows(first, 0, 300)
        part, _ = fuse_rows(second, 100, 170)
        for name in ("ids", "logprobs", "tail", "kind"):
            assert np.array_equal(getattr(rows, name)[100:170], getattr(part, name))
        mass = np.exp(rows.logprobs.astype(np.float64)).sum(axis=1)
        mass += np.exp(rows.tail.astype(np.float64))
        np.testing.assert_allclose(mass, 1.0, atol=1e-5)
        assert np.all(rows.logprobs[:, 1:] <= rows.logprobs[:, :-1])
        if least is not None and not keep_label:
            # A row scales its entries where it makes room for an improbable label.
            used = np.isfinite(rows.logprobs[:, 1:])
            assert np.all(np.exp(rows.logprobs[:, 1:][used]) >= least * (1 - 1e-5))
        if keep_label:
            labeled = (rows.next_ids >= 0) & (rows.kind > 0)
            assert (rows.ids == rows.next_ids[:, None])[labeled].any(axis=1).mean() > 0.99
        assert totals[0].positions_used > 0


def test_a_fit_of_the_measured_split_is_refused_and_left_out_by_default(small):
    for recipe in (
        recipe_of(small, strategy="gate", fit_split="held_out"),
        recipe_of(small, strategy="gate", fit_split="held_out", fit=small.store.names("fits")[0]),
    ):
        with pytest.raises((InvalidInputError, IncompatibleError), match=r"held_out|strategy 'em'"):
            forecast(small.store, recipe)
    recipe = recipe_of(small, strategy="uniform", fit_split="held_out")
    with pytest.raises(InvalidInputError, match=r"'em' is fitted on split 'held_out'.*--fit-split"):
        forecast(small.store, recipe, ForecastSettings(strategies=("em",)))
    result = forecast(small.store, recipe)
    assert "which is measured" in result.left_out
    assert {mixture.strategy for mixture in result.strategies}.isdisjoint(LEARNED)
    assert result.verdict.strategy == "uniform"
    missing = recipe_of(small, strategy="uniform", fit_split="valid")
    assert "no split 'valid'" in forecast(small.store, missing).left_out
    with pytest.raises(InvalidInputError, match="no split 'valid'"):
        forecast(small.store, missing, ForecastSettings(strategies=("gate",)))


def test_a_forecast_measures_each_and_says_whether_fusing_pays(small):
    before = small.store.names("fits")
    result = forecast(small.store, recipe_of(small, strategy="mince"))
    assert small.store.names("fits") == before
    learned = [(m.strategy, m.fit_by) for m in result.strategies if m.fit_by is not None]
    assert learned == [
        ("temperature", "global"),
        ("em", "global"),
        ("em", "entropy"),
        ("loglinear", "global"),
        ("gate", "global"),
    ]
    by_token = [m for m in result.strategies if m.granularity == "token"]
    assert {m.sees for m in by_token} == {"label"}
    assert {m.sees for m in result.strategies if m.granularity == "document"} == {"text"}
    blind = [m for m in result.strategies if m.sees == "nothing"]
    verdict = result.verdict
    assert verdict.bits_per_byte == min(m.common_bits_per_byte for m in blind)
    alone = min(source.alone.common_bits_per_byte for source in result.sources)
    assert verdict.source_bits_per_byte == alone
    assert verdict.pays == (verdict.bits_per_byte < 0.999 * alone)
    assert verdict.strategy in str(verdict)
    assert str(verdict).count(". ") == 0
    assert "label: oracle" in str(list(result.tables())[2].rows)


def test_stored_figures_of_a_learned_strategy_are_those_of_its_rows(small):
    for strategy in LEARNED:
        recipe = recipe_of(small, strategy=strategy, split="held_out", keep_label=True)
        fusion = find_inputs(small.store, recipe, save_fit=False)
        rows, _ = fuse_rows(fusion, 0, fusion.num_tokens)
        result = forecast(
            small.store, recipe, ForecastSettings(strategies=("uniform",), granularities=())
        )
        [mixture] = [each for each in result.strategies if each.strategy == strategy]
        covered = (rows.kind > 0) & (rows.next_ids >= 0)
        np.testing.assert_allclose(
            mixture.tail_mass, np.exp(rows.tail[covered].astype(np.float64)).mean(), rtol=1e-6
        )
        assert mixture.bits_per_byte == pytest.approx(mixture.stored_bits_per_byte, rel=1e-5)


def test_other_models_and_unknown_fits_are_refused(small):
    fit = find_inputs(small.store, recipe_of(small, strategy="gate")).recipe.fit
    assert load_fit(small.store, fit).digest == fit
    with pytest.raises(IncompatibleError, match="strategy 'gate', not 'em'"):
        find_inputs(small.store, recipe_of(small, strategy="em", fit=fit))
    with pytest.raises(IncompatibleError, match="it is of the models of own, other"):
        find_inputs(small.store, recipe_of(small, strategy="gate", fit=fit, sources=["own"]))
    with pytest.raises(NotFoundError, match="has no fit 0000000000000000"):
        find_inputs(small.store, recipe_of(small, strategy="gate", fit="0" * 16))
    with pytest.raises(InvalidInputError, match="uses no fit"):
        recipe_of(small, strategy="mince", fit=fit)
    with pytest.raises(InvalidInputError, match="does not use weights"):
        recipe_of(small, strategy="em", sources=["own=2", "other"])
    with pytest.raises(InvalidInputError, match="registered already"):
        register_strategy("em")(lambda scores, weights: scores)


def test_a_fit_of_part_of_a_large_split_reads_chunks_spread_evenly(small, monkeypatch):
    assert chunk_starts(10 * CHUNK_ROWS, 3 * CHUNK_ROWS) == [0, 3 * CHUNK_ROWS, 6 * CHUNK_ROWS]
    assert chunk_starts(CHUNK_ROWS + 1, 9 * CHUNK_ROWS) == [0, CHUNK_ROWS]
    monkeypatch.setattr(fit_data, "SAMPLE", 50)
    recipe = recipe_of(small, strategy="loglinear", fit_split="train")
    manifest = find_inputs(small.store, recipe, save_fit=False).fitted.manifest
    assert 0 < manifest.num_positions <= 100


def test_domains():
    assert domain_of("law/2019/a.txt") == "law"
    assert domain_of("law/a.jsonl#7") == "law"
    assert domain_of("a.jsonl#7") == "a.jsonl"
    assert domain_of("a.txt") == domain_of("b.txt") == ""


def test_a_domain_has_weights_of_its_own_and_an_unseen_one_those_of_all(small):
    recipe = recipe_of(small, strategy="em", fit_by="domain")
    fitted = find_inputs(small.store, recipe, save_fit=False).fitted
    assert fitted.manifest.domains == ("texts.jsonl",)
    assert len(fitted.manifest.weights) == 2
    assert fitted.domain.tolist() == [1] * 40


@pytest.mark.parametrize("method", get_args(FitMethod))
def test_methods_are_those_of_the_recipe(method):
    recipe = Recipe.parse({"sources": ["a", "b"], "strategy": method, "fit": "0" * 16})
    assert recipe.fit == "0" * 16
