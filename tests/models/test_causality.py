"""The proof that a model's rows are causal: what it refuses, and how batches are made instead."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fusestore.errors import IncompatibleError
from fusestore.models.causality import prove_causal
from fusestore.models.packed_rows import packing_of
from fusestore.models.rounding import distance, rounding_share
from fusestore.models.row_lengths import switch_length
from tests.helpers.changed_model import Changed, positions_after_padding
from tests.helpers.tiny_models import longrope, make_llama, make_model

TOKENS = np.random.default_rng(0).integers(3, 100, 40).astype(np.int32)

SHARP: dict[str, Any] = {"initializer_range": 0.2}


def prove(model, tokens=TOKENS, longest=40, packing=None):
    return prove_causal(model.eval(), tokens, longest, "tiny", packing)


def prefix_mask(length):
    """Attention in both directions among the first `length` tokens."""

    def before(input_ids, _mask):
        batch, time = input_ids.shape
        allowed = torch.ones(time, time).tril().bool()
        allowed[:length, :length] = True
        mask = torch.where(allowed, 0.0, -1e9)[None, None].expand(batch, 1, time, time)
        return {"attention_mask": mask}

    return before


def refusing(forward):
    """A forward pass that runs without position ids only."""

    def changed(input_ids, attention_mask=None, position_ids=None, **inputs):
        if position_ids is not None:
            raise ValueError("position_ids are computed from the mask")
        return forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)

    return changed


def positions_from_the_end(input_ids, _mask):
    return {"position_ids": torch.arange(input_ids.shape[1]).flip(0)[None]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "bart"])
def test_a_causal_model_runs_in_padded_batches(family):
    proof = prove(make_model(family, **SHARP, init_std=0.2))
    assert (proof.batching, proof.moved, proof.notes()) == ("padded", None, [])


OLD_XLNET = pytest.mark.xfail(
    transformers.__version__.startswith("5.2."),
    reason="compares d_head with the default width, not with the given one",
)


@pytest.mark.parametrize(
    "family", ["bert", "xlm", pytest.param("xlnet", marks=OLD_XLNET), "roberta"]
)
def test_a_model_that_reads_both_ways_is_refused(family):
    model = make_model(family, **SHARP, init_std=0.2, d_head=8)
    with pytest.raises(
        IncompatibleError, match=r"tiny \(.*\) is no causal .* moved by [\d.e-]+ na"
    ):
        prove(model)


@pytest.mark.parametrize("length", [2, 5, 40])
def test_a_prefix_model_is_refused(length):
    with pytest.raises(IncompatibleError, match="after it were replaced"):
        prove(Changed(make_llama(100), before=prefix_mask(length)))


def test_a_model_that_counts_from_the_end_is_refused():
    """Its rows change with the number of later tokens, whatever these are."""
    with pytest.raises(IncompatibleError, match="after it were left out"):
        prove(Changed(make_model("gpt2", **SHARP), before=positions_from_the_end))


def test_padding_that_moves_rows_is_left_out():
    proof = prove(Changed(make_model("gpt2", **SHARP), before=positions_after_padding))
    assert proof.batching == "one length"
    assert "padding moves its rows by" in proof.notes()[0]


def test_other_documents_that_move_rows_are_left_out():
    proof = prove(Changed(make_llama(100), after=lambda logits: logits + logits.mean(0)))
    assert proof.batching == "one document"
    assert "each document runs alone" in proof.notes()[0]


@pytest.mark.parametrize("packing", ["rows", "one row"])
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("gpt2", "sdpa"),
        ("gemma2", "eager"),
        ("gemma3_text", "sdpa"),
        ("gemma3_text", "eager"),
    ],
)
def test_a_model_that_masks_documents_is_packed(family, attention, packing):
    """Gemma's sliding windows are shorter than the documents."""
    model = make_model(family, **SHARP, head_dim=8, sliding_window=7)
    model.set_attn_implementation(attention)
    assert packing_of(model) == "rows"
    proof = prove(model, packing=packing)
    assert (proof.batching, proof.moved, proof.notes()) == (packing, None, [])


@pytest.mark.parametrize("packing", ["rows", "one row"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # Their state goes on into the next document.
        ("mamba", {"state_size": 4}),
        ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 4, "n_groups": 1}),
        ("recurrent_gemma", {"lru_width": 32, "head_dim": 8}),
        (
            "jamba",
            {
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "num_experts": 2,
                "use_mamba_kernels": False,
            },
        ),
        # Knows no positions, and so no beginnings.
        ("bloom", {"n_head": 4}),
        # Counts positions by itself.
        ("bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}),
        # Its own positions begin at 2.
        ("roberta", {"is_decoder": True, "pad_token_id": 1}),
    ],
)
def test_a_model_that_reads_across_documents_is_not_packed(family, changes, packing):
    proof = prove(make_model(family, **SHARP, init_std=0.2, **changes), packing=packing)
    assert (proof.batching, proof.notes()) == ("padded", [])


def test_a_model_that_takes_no_positions_is_not_packed():
    model = make_llama(100)
    assert prove(Changed(model), packing="rows").batching == "padded"
    model.forward = refusing(model.forward)
    assert prove(model, packing="rows").batching == "padded"


def test_parts_that_begin_after_many_tokens_are_looked_up():
    """Chunked attention counts from the start of a row, and the proof reads few tokens."""
    llama4 = make_model("llama4_text", head_dim=8, intermediate_size_mlp=64, num_local_experts=2)
    assert llama4.config.attention_chunk_size > 64
    assert packing_of(llama4) is None
    assert switch_length(llama4) is None
    assert switch_length(longrope()) == 16


def test_varlen_kernels_take_one_row():
    model = make_llama(100)
    for attention in ("flash_attention_2", "kernels-community/flash-attn3", "flex_attention"):
        model.config._attn_implementation = attention
        assert packing_of(model) == "one row"


def test_a_model_that_draws_is_refused():
    drawing = Changed(make_llama(100), after=lambda logits: logits + torch.rand_like(logits))
    with pytest.raises(IncompatibleError, match="other rows each time"):
        prove(drawing)


def test_a_model_that_needs_more_than_tokens_is_refused():
    def before(_ids, _mask):
        raise KeyError("pixel_values")

    with pytest.raises(IncompatibleError, match=r"does not run on token ids alone \(KeyError"):
        prove(Changed(make_llama(100), before=before))


def test_logits_of_another_shape_are_refused():
    with pytest.raises(IncompatibleError, match=r"logits of shape \[1, 40, 7\].* \[1, 40, 100\]"):
        prove(Changed(make_llama(100), after=lambda logits: logits[..., :7]))


def test_memory_that_runs_out_is_no_matter_of_the_model():
    def before(_ids, _mask):
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB.")

    with pytest.raises(torch.OutOfMemoryError):
        prove(Changed(make_llama(100), before=before))


@pytest.mark.parametrize("tokens", [[5], [5, 5, 5], [99, 98]])
@pytest.mark.parametrize("longest", [1, 2, 40])
def test_any_corpus_will_do(tokens, longest):
    assert prove(make_llama(100), np.array(tokens, np.int32), longest).batching == "padded"


def test_rows_that_are_not_finite_prove_nothing():
    model = make_llama(100)
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENS[3]] = torch.nan
    assert prove(model).batching == "padded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_of_each_dtype_is_let_pass(dtype):
    assert prove(make_llama(100).to(dtype)).batching == "padded"
    with pytest.raises(IncompatibleError, match="no causal"):
        prove(make_model("bert", **SHARP).to(dtype))


def test_distance_of_rows():
    rows = torch.tensor([[0.0, 1.0, -torch.inf, 4.0], [torch.nan, 0.0, 0.0, 0.0]])
    assert distance(rows, rows) == (0.0, 0.0)
    moved = distance(rows, torch.tensor([[0.0, 1.0, -torch.inf, 5.0], [0.0, 0.0, 0.0, 0.0]]))
    before, after = (torch.log_softmax(torch.tensor([0.0, 1.0, top]), 0) for top in (4.0, 5.0))
    assert moved.nats == pytest.approx(float((before - after).abs().max()), rel=1e-5)
    assert moved.share == pytest.approx(moved.nats / 3.0, rel=1e-5)
    assert distance(torch.zeros(1, 4), torch.tensor([[0.0, torch.nan, 0.0, 0.0]])).nats == torch.inf
    assert distance(rows[:0], rows[:0]) == (0.0, 0.0)


def test_ids_that_a_model_never_gives_are_not_in_the_spread():
    rows = torch.tensor([[3.0, 0.0, -65504.0, -65504.0, -torch.inf]])
    assert distance(rows, rows + torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])).share > 0.2


def test_the_coarsest_format_bounds_rounding():
    model = make_llama(100)
    assert rounding_share(model, torch.zeros(1)) == pytest.approx(3.45e-4, rel=1e-2)
    assert rounding_share(model, torch.zeros(1).bfloat16()) == pytest.approx(0.0884, rel=1e-2)
    assert rounding_share(model.half(), torch.zeros(1)) == pytest.approx(0.03125)
