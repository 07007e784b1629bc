"""Logits in chunks are the model's own logits, for every family of output head."""

import pytest
import torch

from fusestore.models import logits as engine
from tests.helpers.tiny_models import make_model

FAMILIES = [
    ("llama", {"num_key_value_heads": 4}),
    # Soft-caps its logits after the head.
    ("gemma2", {"head_dim": 8}),
    ("gpt_neox", {}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    ("gpt2", {}),
    ("bloom", {}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_chunks_equal_the_whole(family, changes, monkeypatch):
    model = make_model(family, **changes)
    input_ids = torch.randint(3, 100, (2, 17))
    mask = torch.ones_like(input_ids)
    mask[1, 10:] = 0
    with torch.inference_mode():
        whole = model(input_ids=input_ids, attention_mask=mask).logits
    monkeypatch.setitem(engine.CHUNK_LOGITS, "cpu", 2 * 100 * 3)
    chunks = list(engine.logit_chunks(model, input_ids, mask))
    assert [start for start, _ in chunks] == list(range(0, 17, 3))
    assert all(logits.shape[1] <= 3 for _, logits in chunks)
    torch.testing.assert_close(
        torch.cat([logits for _, logits in chunks], 1), whole, atol=1e-6, rtol=0
    )
    with torch.inference_mode():
        again = model(input_ids=input_ids, attention_mask=mask).logits
    assert torch.equal(again, whole), "the model was not left as it was"
