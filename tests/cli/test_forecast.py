"""`fusestore forecast`, and that its figure for one source is the model's own."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import build_corpus
from fusestore.corpus.settings import CorpusSettings
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.forecast.run import forecast
from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import load_tokenizer
from fusestore.train.held_out import bits_per_byte
from tests.helpers.tiny_job import hashes, paragraphs

SCHEMA = Path(__file__).parent.parent.parent / "schemas" / "forecast.json"


def by_options(store, *more):
    return [
        *["forecast", "--store", str(store), "--top-k", "8", "--window-length", "64"],
        *["--source", "small", "--source", "wide", "--target", "small", *more],
    ]


def evaluated(folder, store, corpus_name, split):
    """What the model itself scores on a split, in float32."""
    tokenizer = load_tokenizer(str(folder))
    corpus = fs.open_corpus(store, corpus_name)
    tokens = corpus_tokens(Store.open(store), corpus, tokenizer, tokenizer.adds_bos)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return bits_per_byte(model, tokens.take(corpus.split_documents(split)))


def test_tables_or_json_are_printed_and_nothing_is_written(command, store):
    before = hashes(Location.parse(store))
    shown = command.succeeds(*by_options(store)).out
    for wanted in ("held_out", "small", "wide", "mince", "packllm", "uniform", "KL", "common"):
        assert wanted in shown
    told = command.succeeds(*by_options(store), "--json").json
    assert hashes(Location.parse(store)) == before
    jsonschema.validate(told, json.loads(SCHEMA.read_text()))
    assert told["recipe"]["split"] == "held_out"
    assert [source["cache"] for source in told["sources"]] == ["small", "wide"]
    assert [source["exact"] for source in told["sources"]] == [True, False]
    assert [len(mixture["sources"]) for mixture in told["growth"]] == [1, 2]
    learned = ["temperature", "em", "em", "loglinear", "gate"]
    assert len(told["strategies"]) == 3 * 3 + 1 + len(learned)
    assert [each["strategy"] for each in told["strategies"] if each["fit_by"]] == learned
    assert shown.rstrip().splitlines()[-1].startswith("Fusing is ")
    train = command.succeeds(*by_options(store, "--split", "train"), "--json").json
    assert train["num_predicted"] > told["num_predicted"]
    message = command.fails(*by_options(store, "--split", "absent"))
    assert "'absent'" in message
    assert "held_out" in message


def test_python_gives_what_the_command_prints(command, store):
    told = command.succeeds(*by_options(store), "--json").json
    recipe = fs.Recipe(sources=["small", "wide"], target="small", top_k=8, window_length=64)
    found = forecast(Store.open(store), recipe)
    assert isinstance(found, fs.Forecast)
    assert found.model_dump(mode="json") == told
    with pytest.raises(fs.FusestoreError, match="top_kk"):
        fs.Recipe.parse({"sources": ["small"], "top_kk": 8})


def test_one_source_alone_is_forecast_as_the_model_itself_scores(job, first_store):
    recipe = fs.Recipe(sources=["small", "wide"], corpus="addresses")
    found = forecast(Store.open(first_store), recipe, target=Model.open(job / "small"))
    exact = evaluated(job / "small", first_store, "addresses", "held_out")
    alone = found.sources[0].alone
    assert found.num_bytes == exact.num_bytes
    assert found.num_predicted == exact.num_tokens
    assert alone.covered == 1.0
    assert alone.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=1e-3)
    assert alone.nats_per_token == pytest.approx(exact.nats_per_token, rel=1e-3)
    other = evaluated(job / "wide", first_store, "addresses", "held_out")
    own = found.sources[1].own_bits_per_byte
    assert own == pytest.approx(other.bits_per_byte, rel=1e-3)


@pytest.mark.slow
def test_smollm2_alone_is_forecast_as_it_scores(smollm2_path, tmp_path):
    rows = [{"text": text, "split": "held_out"} for text in paragraphs()[:12]]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store.open(tmp_path / "store")
    model = Model.open(smollm2_path)
    split = CorpusSettings(split_column="split", max_length=256)
    corpus = build_corpus(store, "corpus", texts, split, tokenizers=[model]).artifact
    settings = CaptureSettings(top_k=16, dtype="float32")
    capture(store, "smollm2", model, corpus, settings)
    found = forecast(store, fs.Recipe(sources=["smollm2"], target="smollm2"))
    exact = evaluated(smollm2_path, tmp_path / "store", "corpus", "held_out")
    bits = found.sources[0].alone.bits_per_byte
    assert bits == pytest.approx(exact.bits_per_byte, rel=1e-3)
    assert bits == found.sources[0].own_bits_per_byte


def test_a_recipe_is_forecast_on_the_held_out_split(command, store, tmp_path):
    plan = json.loads((store / "fused" / "mince" / "fingerprint.json").read_text())
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(plan["recipe"]))
    told = command.succeeds("forecast", recipe, "--store", store, "--json").json
    assert told["recipe"]["split"] == "held_out"
    same = command.succeeds(*by_options(store), "--json").json
    assert told["strategies"] == same["strategies"]
    for more in (["--materialize"], ["--shared-to", "elsewhere"], ["--source", "small"]):
        assert command("forecast", recipe, "--store", store, *more).code == 2
    assert command("forecast", "--store", store).code == 2
    assert "--source" in command("forecast", "--store", store, "--top-k", "4").err


def test_options_change_what_a_recipe_file_says(command, store, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'sources = ["small", "wide"]\ntarget = "small"\nstrategy = "mince"\ntop_k = 4\n'
    )
    told = command.succeeds(
        *["forecast", recipe, "--store", store, "--top-k", "8", "--window-length", "64", "--json"],
        *["--compare", "uniform", "--compare-by", "token"],
    ).json
    assert (told["recipe"]["top_k"], told["recipe"]["window_length"]) == (8, 64)
    whole = command.succeeds(*by_options(store), "--json").json
    assert told["sources"] == whole["sources"]
    assert {row["strategy"] for row in told["strategies"]} == {"uniform", "mince"}
    refused = command("forecast", recipe, "--store", store, "--compare", "unifrom")
    assert refused.code == 2
    assert "Did you mean 'uniform'" in " ".join(refused.err.split())


def test_a_target_must_be_named_where_sources_have_several_tokenizers(command, store):
    arguments = ["forecast", "--store", str(store), "--source", "wide", "--source", "small"]
    message = " ".join(command.fails(*arguments).split())
    assert "names no target, and its sources have 2 tokenizers" in message
    assert "--target wide" in message
    alone = command.succeeds(*arguments[:-2], "--json").json
    assert [source["exact"] for source in alone["sources"]] == [True]
