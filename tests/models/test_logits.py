"""Logits in chunks are the model's own logits, and the backbone runs once, whatever its name."""

import re
from collections import Counter
from typing import Any

import pytest
import torch

from fusestore.models import logits as engine
from fusestore.models.loading import output_width
from tests.helpers.tiny_models import make_llama, make_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    # Soft-caps its logits after the head.
    "gemma2": {"head_dim": 8},
    # Scales them.
    "cohere": {},
    "gpt_neox": {},
    # Calls model.decoder, not its base model.
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bart": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4},
    # Names a base model that it does not have.
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2},
    "gpt2": {},
    "bloom": {},
    # Has layers of its own between the backbone and the output embeddings.
    "bert": {"is_decoder": True},
    # Returns an output of another kind, without `use_cache` among its arguments.
    "mamba": {"state_size": 4},
}


class Unrolled(torch.nn.Module):
    """A Llama without a module for its backbone: its own forward runs every layer."""

    def __init__(self, llama):
        super().__init__()
        self.layers, self.embed = llama.model.layers, llama.model.embed_tokens
        self.rotary, self.head = llama.model.rotary_emb, llama.lm_head
        self.config = llama.config

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embed(input_ids)
        positions = torch.arange(input_ids.shape[1])[None]
        rotary = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary, position_ids=positions)
        return type(self).Output(self.head(hidden))

    class Output:
        def __init__(self, logits):
            self.logits = logits


def batch(width):
    input_ids = torch.randint(3, width, (2, 17), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(input_ids)
    mask[1, 10:] = 0
    return input_ids, mask


def run(model, input_ids, mask):
    """The chunks, and how often each module was called meanwhile."""
    calls = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
    ]
    chunks = list(engine.logit_chunks(model, input_ids, mask))
    for hook in hooks:
        hook.remove()
    return chunks, calls


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_equal_the_whole(family, monkeypatch):
    model = make_model(family, **FAMILIES[family])
    width = output_width(model)
    input_ids, mask = batch(width)
    with torch.inference_mode():
        whole = model(input_ids=input_ids, attention_mask=mask).logits
    assert engine.has_chunked_logits(model, input_ids)
    monkeypatch.setitem(engine.CHUNK_LOGITS, "cpu", 2 * width * 3)
    chunks, calls = run(model, input_ids, mask)
    assert [start for start, _ in chunks] == list(range(0, 17, 3))
    assert all(logits.shape[1] <= 3 for _, logits in chunks)
    torch.testing.assert_close(
        torch.cat([logits for _, logits in chunks], 1), whole, atol=1e-6, rtol=0
    )
    first_layers = [calls[name] for name in calls if re.search(r"\.(h|layers?)\.0$", name)]
    assert first_layers == [1], "the backbone ran more than once"
    with torch.inference_mode():
        again = model(input_ids=input_ids, attention_mask=mask).logits
    assert torch.equal(again, whole), "the model was not left as it was"
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_without_a_backbone_runs_whole(monkeypatch):
    model = Unrolled(make_llama(100)).eval()
    input_ids, mask = batch(100)
    assert not engine.has_chunked_logits(model, input_ids)
    monkeypatch.setitem(engine.CHUNK_LOGITS, "cpu", 2 * 100 * 3)
    chunks, calls = run(model, input_ids, mask)
    with torch.no_grad():
        whole = model(input_ids).logits
    assert [start for start, _ in chunks] == list(range(0, 17, 3))
    assert torch.equal(torch.cat([logits for _, logits in chunks], 1), whole)
    assert calls["layers.0"] == 1


def test_a_forward_of_its_own_is_restored():
    """Of a backbone that another library has wrapped, as accelerate does."""
    model = make_llama(100)
    plain = model.model.forward
    wrapped = lambda *ids, **inputs: plain(*ids, **inputs)  # noqa: E731
    model.model.forward = wrapped
    run(model, *batch(100))
    assert model.model.forward is wrapped
