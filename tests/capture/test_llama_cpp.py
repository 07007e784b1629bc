"""llama.cpp's rows of a GGUF file against those of transformers, from the dequantized model."""

import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.cache.verify import verify_cache
from fusestore.capture.engines import libllama
from fusestore.capture.engines.libllama import LlamaModel, is_installed
from fusestore.capture.engines.llama_cpp_engine import LlamaCppEngine, compare_tokens
from fusestore.capture.engines.protocol import EngineJob
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import Corpus
from fusestore.errors import (
    IncompatibleError,
    InvalidInputError,
    MissingDependencyError,
    NonFiniteError,
)
from fusestore.models.gguf_conversion import convert_gguf
from fusestore.models.gguf_model import GgufModel
from fusestore.models.model import Model
from fusestore.progress import SilentReporter
from fusestore.storage.packages import user_cache_folder
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.workflows.repair import repair_store
from tests.helpers.gguf_files import write_gguf
from tests.helpers.tiny_models import TEXTS, make_llama, train_tokenizer

pytestmark = pytest.mark.skipif(
    not is_installed(), reason="needs xllamacpp: pip install 'fusestore[llama]'"
)

VOCAB = 300
SETTINGS = {
    "top_k": 7,
    "profile": "lossless",
    "rows_per_shard": 64,
    "rows_per_chunk": 16,
    "engine": "llama.cpp",
}
FLOAT = 0.01
"""Nats by which rows of float32 weights differ: keys and values have 16 bits there."""


@dataclass(frozen=True)
class Job:
    """A GGUF file with float32 weights and a corpus, in a user cache folder of their own."""

    folder: Path
    file: Path
    store: Store
    corpus: Corpus

    def capture(self, name, file=None, reporter=None, **changes):
        model = Model.open(str(file or self.file), store=self.store)
        settings = CaptureSettings(**{**SETTINGS, **changes})
        return capture(self.store, name, model, self.corpus, settings, reporter=reporter).artifact

    def write(self, name, change=lambda tensors: tensors, **options):
        tokenizer = train_tokenizer(TEXTS, VOCAB)
        return write_gguf(self.folder / name, make_llama(VOCAB), tokenizer, change, **options)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSESTORE_HOME", str(folder / "home"))
        texts = [f"{text} {number}" for number in range(3) for text in TEXTS]
        pl.DataFrame({"text": texts}).write_parquet(folder / "texts.parquet")
        store = Store.open(folder / "store")
        corpus = write_corpus(store, "demo", folder / "texts.parquet")
        made = Job(folder, folder / "m.gguf", store, corpus)
        made.write("m.gguf")
        yield made


@pytest.fixture
def name(request):
    return request.node.name.partition("[")[0].removeprefix("test_")


class Lines(SilentReporter):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def engine_job(job, **changes):
    """The job of an engine, with the tokens of the corpus."""
    model = GgufModel(Model.open(str(job.file)))
    cache = job.capture("of-tokens")
    values = {
        "name": "tiny",
        "model": model,
        "settings": CaptureSettings(**SETTINGS),
        "vocab_size": model.vocab_size,
        "max_length": cache.fingerprint.max_length,
        "dtype": None,
        "read_tokens": lambda: cache.tokens,
        "reporter": SilentReporter(),
    }
    return EngineJob(**{**values, **changes})


def largest_difference(one, other):
    return np.nanmax(np.abs(one - other))


def assert_same(first, second):
    for field, value in vars(first).items():
        np.testing.assert_array_equal(value, vars(second)[field])


@pytest.mark.parametrize(
    "rule",
    [{}, {"selection": "top-p", "top_p": 0.8}, {"selection": "sampled", "profile": "compact"}],
    ids=["top-k", "top-p", "sampled"],
)
def test_rows_are_those_of_transformers(job, rule):
    label = rule.get("selection", "top-k")
    rows = job.capture(f"own-{label}", **rule)[:]
    settings = {**rule, "engine": "transformers", "dtype": "float32", "device": "cpu"}
    expected = job.capture(f"reference-{label}", **settings)[:]
    assert largest_difference(rows.label_logprob, expected.label_logprob) < FLOAT
    if label == "sampled":
        # The draws are the same; a logit that moved puts few of them on a neighbor.
        assert np.mean(rows.ids == expected.ids) > 0.95
        return
    both = (rows.logprobs > -np.inf) & (expected.logprobs > -np.inf)
    assert both.sum() > 0.99 * (expected.logprobs > -np.inf).sum()
    assert largest_difference(rows.logprobs[both], expected.logprobs[both]) < FLOAT
    assert np.mean(rows.ids[both] == expected.ids[both]) > 0.99
    mass = np.exp(rows.logprobs.astype(np.float64)).sum(1) + np.exp(rows.tail.astype(np.float64))
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)


def test_nothing_is_converted_but_the_tokenizer(job, name, monkeypatch):
    monkeypatch.setenv("FUSESTORE_HOME", str(job.folder / "other-home"))
    cache = job.capture(name)
    assert not list(verify_cache(cache.location))
    assert [each.name for each in user_cache_folder().iterdir() if each.is_dir()] == ["tokenizers"]
    assert cache.fingerprint.dtype is None
    assert cache.fingerprint.tokenizer_digest == Model.open(str(job.file)).tokenizer.digest


@pytest.mark.parametrize(
    "form",
    ["F16", "Q4_0", *(pytest.param(form, marks=pytest.mark.slow) for form in ("Q8_0", "Q5_1"))],
)
def test_the_weights_are_those_of_the_file(job, name, form):
    """Blocks keep their weights; activations are rounded to 8 bits, far less than the weights."""
    [file] = job.write(f"{form}.gguf", quantization=getattr(gguf.GGMLQuantizationType, form))
    rows = job.capture(f"{name}-{form}", file)[:]
    settings = {"engine": "transformers", "dtype": "float32", "device": "cpu"}
    dequantized = job.capture(f"{name}-{form}-reference", file, **settings)[:]
    original = job.capture("of-float", **settings)[:]
    limit = FLOAT * 2 if form == "F16" else 0.3
    moved = np.abs(rows.label_logprob - dequantized.label_logprob)
    assert np.nanmax(moved) < limit
    if form.startswith(("Q4", "Q5")):
        quantized = np.abs(rows.label_logprob - original.label_logprob)
        assert np.nanmean(moved) < 0.3 * np.nanmean(quantized)


def test_parts_of_a_file_are_read_together(job, name):
    parts = job.write("parts.gguf", tensors_per_part=7)
    assert len(parts) > 1
    assert_same(job.capture("whole")[:], job.capture(name, parts[-1])[:])


def test_other_shards_have_the_same_rows(job, name):
    """So other documents run beside each other, and a document that crosses shards runs twice."""
    rows = job.capture(f"{name}-small", rows_per_shard=16)[:]
    assert_same(rows, job.capture(f"{name}-large", rows_per_shard=4096)[:])


@given(data=st.data())
def test_a_row_depends_only_on_the_tokens_up_to_it(quantized, data):
    """Bit by bit: not on how many tokens follow, how long batches are, or which rows are wanted."""
    model, ids, logits = quantized
    length = data.draw(st.integers(1, len(ids)))
    batch_size = data.draw(st.sampled_from([64, 96, 128, 512]))
    model.batch_size = batch_size
    share = data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    wanted = np.random.default_rng(length).random(length) < share
    wanted = data.draw(st.sampled_from([wanted, None]))
    positions, parts = zip(
        *((at, part.copy()) for at, part in model.logits(ids[:length], wanted)), strict=True
    )
    at = np.concatenate(positions)
    assert (np.diff(at) > 0).all()
    assert set(np.arange(length) if wanted is None else wanted.nonzero()[0]) <= set(at)
    np.testing.assert_array_equal(np.concatenate(parts), logits[at])


@pytest.fixture(scope="module")
def quantized(job):
    [file] = job.write("q4.gguf", quantization=gguf.GGMLQuantizationType.Q4_0)
    model = LlamaModel(file, 300, 1)
    ids = np.random.default_rng(0).integers(0, VOCAB, 300, dtype=np.int32)
    yield model, ids, np.concatenate([part.copy() for _, part in model.logits(ids)])
    model.close()


def test_a_capture_that_was_interrupted_continues(job, name):
    class Interrupted(Lines):
        def stage(self, *names):
            stage = super().stage(*names)

            class Stops:
                def __enter__(self):
                    report = stage.__enter__()

                    def stop(done, total):
                        if total > 64 and done > total // 2:
                            raise KeyboardInterrupt
                        report(done, total)

                    return stop

                def __exit__(self, *error):
                    return stage.__exit__(*error)

            return Stops()

    with pytest.raises(KeyboardInterrupt):
        job.capture(name, reporter=Interrupted())
    location = job.store.cache(name)
    finished = [path for path in location.sizes() if path.startswith("receipts/")]
    assert finished
    assert not (location / "manifest.json").exists()
    stamps = {path: (location.path / path).stat().st_mtime_ns for path in finished}
    cache = job.capture(name)
    assert stamps == {path: (location.path / path).stat().st_mtime_ns for path in finished}
    assert_same(cache[:], job.capture("whole")[:])


def test_a_damaged_shard_is_made_again(job, name):
    cache = job.capture(name)
    before = cache[:]
    shards = [path for path in (cache.location.path / "ids").rglob("*") if path.name == "0"]
    file = next(path for path in shards if path.is_file())
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    repairs = repair_store(job.store, f"cache/{name}", models=[str(job.file)])
    assert [repair.problem for repair in repairs.values()] == [None]
    assert_same(job.capture(name)[:], before)


def test_a_file_that_is_cut_off_is_refused(job, name):
    whole = job.file.read_bytes()
    for size in (len(whole) - 5_000, len(whole) // 2, 400, 3):
        file = job.folder / f"cut-{size}.gguf"
        file.write_bytes(whole[:size])
        with pytest.raises(InvalidInputError, match=r"cut-\d+\.gguf"):
            job.capture(name, file)
    assert name not in job.store.names("caches")


def test_what_llama_cpp_cannot_load_is_said_with_its_reason(job, name):
    [file] = job.write(
        "less.gguf", lambda tensors: {k: v for k, v in tensors.items() if "ffn_down" not in k}
    )
    with pytest.raises(InvalidInputError, match=r"less\.gguf: .*ffn_down"):
        job.capture(name, file)


def test_weights_that_are_no_numbers_give_no_rows(job, name):
    def spoil(tensors):
        first = next(key for key in tensors if "ffn_up" in key)
        return tensors | {first: tensors[first] * np.float32(np.nan)}

    [file] = job.write("nan.gguf", spoil)
    with pytest.raises(NonFiniteError):
        job.capture(name, file)


def test_a_model_that_reads_later_tokens_is_refused(job, name):
    [file] = job.write("both.gguf", metadata={"llama.attention.causal": False})
    with pytest.raises(IncompatibleError, match="no causal language model"):
        job.capture(name, file)
    assert name not in job.store.names("caches")


def test_another_vocabulary_is_refused(job):
    """Ids go out; what the model reads must be what was meant."""
    model = GgufModel(Model.open(str(job.file)))
    other = train_tokenizer(("Other text gives other merges: zebra, quartz, oxygen.",), VOCAB)
    [file] = write_gguf(job.folder / "other.gguf", make_llama(VOCAB), other)
    model.tokenizer = GgufModel(Model.open(str(file))).tokenizer
    with pytest.raises(IncompatibleError, match=r"Token \d+ is .* for llama.cpp"):
        LlamaCppEngine.start(engine_job(job, model=model))
    with pytest.raises(IncompatibleError, match="301 tokens"):
        LlamaCppEngine.start(engine_job(job, vocab_size=301))


def test_another_split_of_the_text_is_said(job):
    tokenizer = GgufModel(Model.open(str(job.file))).tokenizer
    table = tokenizer.encode([*TEXTS, ""], False)
    model = LlamaModel(job.file, 128, 1)
    assert compare_tokens(model, table, tokenizer) is None
    spelled = {data: i for i, data in enumerate(tokenizer.vocabulary.token_bytes)}
    text = TEXTS[1].encode()
    alone = np.array([spelled[bytes([byte])] for byte in text], np.int32)
    same, ends = table.document(0)
    single = TokenTable(
        np.concatenate([same, alone]),
        np.concatenate([ends, np.arange(1, len(text) + 1, dtype=np.int32)]),
        np.array([0, len(same), len(same) + len(alone)]),
    )
    sentence = compare_tokens(model, single, tokenizer)
    assert "1 of 2 documents" in sentence
    assert "document 1 at byte" in sentence
    model.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float32"}, "llama.cpp decides"),
        ({"batch_size": 4}, "batch_size has no effect"),
        ({"attention": "eager"}, "attention has no effect"),
        ({"device": "mps"}, "device has no effect"),
        ({"server": ("http://localhost:1",)}, "server has no effect"),
    ],
)
def test_settings_without_effect_are_refused(job, name, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        job.capture(name, **changes)


def test_a_folder_is_refused(job, name):
    with pytest.raises(IncompatibleError, match="no GGUF file"):
        job.capture(name, convert_gguf(job.file))


def test_without_the_package_it_says_what_to_install(job, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    libllama._library.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'fusestore\[llama\]'"):
        job.capture(name)
