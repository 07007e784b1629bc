"""The losses on real models: one against its own rows, and a large vocabulary in pieces."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from fusestore.losses import FusionObjective, fusion_terms
from fusestore.losses.linear_loss import PRODUCT_LOGITS
from fusestore.models.model import Model
from fusestore.tokenizers.tokenizer import load_tokenizer
from fusestore.train import TrainSettings
from fusestore.train.student.model_folder import load_trainable
from fusestore.train.student.student import Student

TEXT = """Fellow citizens: I am again called upon by the voice of my country to execute the
functions of its Chief Magistrate. When the occasion proper for it shall arrive, I shall endeavour
to express the high sense I entertain of this distinguished honour, and of the confidence which has
been reposed in me by the people of united America."""


def batch_of(path, model, k):
    """The text, and the model's own k most likely tokens with the mass of all others."""
    ids = torch.from_numpy(load_tokenizer(str(path)).encode([TEXT], add_bos=True).token_ids).long()
    with torch.no_grad():
        logits = model(input_ids=ids[None, :-1]).logits
    top = torch.log_softmax(logits.double(), -1).topk(k)
    return logits, {
        "input_ids": ids[None, :-1],
        "attention_mask": torch.ones(1, len(ids) - 1, dtype=torch.int64),
        "next_ids": ids[None, 1:],
        "fused_ids": top.indices,
        "fused_logprobs": top.values.float(),
        "fused_tail": torch.log1p(-top.values.exp().sum(-1)).float(),
        "fused_mask": torch.ones(1, len(ids) - 1, dtype=torch.bool),
    }


@pytest.mark.slow
def test_smollm2_has_nothing_to_learn_from_its_own_rows(smollm2_path):
    model = AutoModelForCausalLM.from_pretrained(smollm2_path, dtype=torch.float32).eval()
    logits, batch = batch_of(smollm2_path, model, 128)
    for temperature in (0.5, 1.0, 4.0):
        for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
            leaf = logits.clone().requires_grad_()
            objective = FusionObjective(0.0, temperature, "ghost", divergence)
            loss = fusion_terms(leaf, batch, objective).loss
            loss.backward()
            assert abs(loss.item()) < 1e-6
            assert leaf.grad.norm() < 1e-7
    # What the ghost is for: without it, what 128 entries leave out is a loss of tens of nats.
    without = FusionObjective(0.0, 4.0, "renormalize", "forward_kl")
    assert fusion_terms(logits, batch, without).loss > 10


@pytest.mark.slow
def test_gemma3_trains_in_pieces_as_over_whole_logits(gemma3_path, monkeypatch):
    """262,144 tokens and tied embeddings; 16 positions a product."""
    monkeypatch.setitem(PRODUCT_LOGITS, "cpu", 1 << 22)
    settings = TrainSettings(
        precision="float32", tail="ghost", lm_weight=0.5, divergence="reverse_kl"
    )
    model = load_trainable(Model.open(gemma3_path), settings)
    _, batch = batch_of(gemma3_path, model, 32)
    found = []
    for logits in ("whole", "chunked"):
        student = Student(model, settings.model_copy(update={"logits": logits}), 1024)
        terms = student(batch)
        terms.loss.backward()
        found.append((terms.loss.item(), model.get_output_embeddings().weight.grad))
        model.zero_grad()
    (whole, expected), (pieces, gradient) = found
    assert pieces == pytest.approx(whole, rel=1e-5)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    auto = Student(model, settings, 1024)
    assert auto.is_chunked
