"""Bits per byte against a document-by-document float64 computation."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fusestore.errors import InvalidInputError, NonFiniteError
from fusestore.models import logits as engine
from fusestore.tokenizers.token_table import TokenTable
from fusestore.train.held_out import bits_per_byte, document_nats
from tests.helpers.tiny_models import make_model


def table(lengths, seed=0, vocab_size=100, first_byte=1):
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    ends = [first_byte + np.cumsum([0, *rng.integers(0, 5, n)])[:n] for n in lengths]
    ends = [each.astype(np.int32) for each in ends]
    return TokenTable(
        rng.integers(0, vocab_size, total).astype(np.int32),
        np.concatenate([np.empty(0, np.int32), *ends]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def plain_nats(model, ids, window):
    """Rows of each window of `window` tokens, each scored against the token after it."""
    total = 0.0
    for start in range(0, len(ids) - 1, window):
        piece = torch.from_numpy(ids[start : start + window].astype(np.int64))
        with torch.no_grad():
            rows = torch.log_softmax(model(input_ids=piece[None]).logits[0].double(), -1)
        for i in range(len(piece)):
            if start + i + 1 < len(ids):
                total -= float(rows[i, ids[start + i + 1]])
    return total


@pytest.fixture(scope="module")
def model(tiny_model_path):
    return AutoModelForCausalLM.from_pretrained(tiny_model_path).eval()


@pytest.mark.parametrize("window", [64, 7, 1])
def test_equals_one_document_at_a_time(model, monkeypatch, window):
    monkeypatch.setattr(engine, "CHUNK_LOGITS", {"cpu": 500})
    tokens = table([9, 1, 0, 20, 2, 15])
    expected = [plain_nats(model, tokens.document(i)[0], window) for i in range(6)]
    seen = []
    nats = document_nats(model, tokens, max_length=window, batch_tokens=40, progress=seen.append)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert sum(seen) == sum(max(0, n - 1) for n in [9, 1, 0, 20, 2, 15])
    held_out = bits_per_byte(model, tokens, max_length=window)
    ends = [tokens.document(i)[1] for i in range(6)]
    num_bytes = sum(int(e[-1] - e[0]) for e in ends if len(e))
    assert (held_out.num_bytes, held_out.num_tokens) == (num_bytes, 42)
    assert held_out.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / num_bytes)
    assert held_out.nats_per_token == pytest.approx(sum(expected) / 42)


@pytest.mark.parametrize("window", [64, 7, 2])
def test_every_window_of_a_document_with_bos_begins_with_it(model, window):
    lengths = [9, 1, 0, 20, 2, 15]
    tokens = table(lengths, first_byte=0)
    expected = []
    for document in range(len(lengths)):
        ids = tokens.document(document)[0].astype(np.int64)
        total = 0.0
        for i in range(1, len(ids)):
            # The first window predicts as many tokens as it has; the others have one of BOS.
            within = i - 1 if i <= window else (i - 1 - window) % (window - 1)
            begin = i - 1 - within
            text = ids[begin:i] if i <= window else np.concatenate([ids[:1], ids[begin:i]])
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(text)[None]).logits[0, -1]
            total -= float(torch.log_softmax(logits.double(), -1)[ids[i]])
        expected.append(total)
    seen = []
    nats = document_nats(model, tokens, max_length=window, batch_tokens=40, progress=seen.append)
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert sum(seen) == sum(max(0, n - 1) for n in lengths)


def test_mode_is_put_back_and_dropout_is_off(model):
    tokens = table([10, 12])
    model.train()
    first = document_nats(model, tokens)
    assert model.training
    model.eval()
    assert np.array_equal(first, document_nats(model, tokens))


def test_capped_logits():
    model = make_model(
        "gemma3_text",
        seed=1,
        vocab_size=90,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
    )
    tokens = table([8, 13], vocab_size=90)
    expected = [plain_nats(model, tokens.document(i)[0], 100) for i in range(2)]
    np.testing.assert_allclose(document_nats(model, tokens), expected, rtol=1e-5)


def test_a_head_of_its_own_kind_is_the_models_own(model, monkeypatch):
    original = type(model).forward

    def scaled(self, **options):
        output = original(self, **options)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(type(model), "forward", scaled)
    tokens = table([9, 14])
    expected = [plain_nats(model, tokens.document(i)[0], 100) for i in range(2)]
    np.testing.assert_allclose(document_nats(model, tokens), expected, rtol=1e-5)


def test_nan_names_the_document(tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    tokens = TokenTable(
        np.array([1, 2, 3, 4, 7, 6], np.int32),
        np.array([1, 2, 3, 1, 2, 3], np.int32),
        np.array([0, 3, 6], np.int64),
    )
    with pytest.raises(NonFiniteError, match="document"):
        document_nats(model, tokens)


def test_nothing_to_predict(model):
    with pytest.raises(InvalidInputError, match="two tokens"):
        bits_per_byte(model, table([1, 0, 1]))


@pytest.mark.slow
def test_smollm2_in_bfloat16_is_close_to_float32(smollm2_path):
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32)
    tokens = table([40, 25], vocab_size=49152)
    exact = document_nats(model, tokens)
    expected = [plain_nats(model, tokens.document(i)[0], 100) for i in range(2)]
    np.testing.assert_allclose(exact, expected, rtol=1e-4)
    np.testing.assert_allclose(document_nats(model, tokens, precision="bfloat16"), exact, rtol=0.02)
