"""The model with its objective: logits in pieces train like whole ones, or are refused."""

import pytest
import torch
from transformers import LlamaForCausalLM

from fusestore.data import collate
from fusestore.errors import IncompatibleError
from fusestore.losses import linear_loss
from fusestore.storage.location import Location
from fusestore.train import TrainSettings, train
from fusestore.train.student import student as student_module
from fusestore.train.student.plain_head import plain_head
from fusestore.train.student.student import Student
from tests.helpers.tiny_models import make_model

SETTINGS = TrainSettings(lm_weight=0.5, precision="float32", tail="ghost", batch_size=3)


def gemma2():
    return make_model(
        "gemma2", head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager"
    )


def gptj():
    """Its output layer has a bias and is not tied."""
    model = make_model("gptj", n_positions=64, rotary_dim=4)
    torch.nn.init.normal_(model.lm_head.bias)
    return model


def gpt2():
    return make_model("gpt2", n_positions=64)


def cohere():
    """Multiplies its logits by 1/16."""
    return make_model("cohere", head_dim=8, pad_token_id=0, eos_token_id=1, bos_token_id=2)


@pytest.fixture
def few_logits_at_a_time(monkeypatch):
    monkeypatch.setitem(linear_loss.PRODUCT_LOGITS, "cpu", 700)


@pytest.mark.usefixtures("few_logits_at_a_time")
@pytest.mark.parametrize("make", [gemma2, gptj, gpt2])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pieces_have_the_loss_and_gradients_of_the_whole(make, precision, dataset):
    torch.manual_seed(0)
    model = make().eval()
    batch = collate(dataset.__getitems__([0, 1, len(dataset) - 1]))
    found = {}
    for logits in ("whole", "chunked"):
        student = Student(model, SETTINGS.model_copy(update={"logits": logits}), 32)
        assert student.is_chunked == (logits == "chunked")
        model.zero_grad()
        with student_autocast(precision):
            terms = student(batch)
        terms.loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
        found[logits] = (terms, gradients)
    tolerance = 1e-5 if precision == "float32" else 0.03
    whole, pieces = found["whole"], found["chunked"]
    torch.testing.assert_close(whole[0], pieces[0], rtol=tolerance, atol=tolerance)
    for name, expected in whole[1].items():
        assert (pieces[1][name] - expected).norm() <= tolerance * (expected.norm() + 1e-3), name


def student_autocast(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


def test_a_head_that_does_more_is_refused_and_auto_takes_the_whole(monkeypatch, dataset):
    model = cohere()
    with pytest.raises(IncompatibleError, match=r"CohereForCausalLM does more.*logits = 'whole'"):
        Student(model, SETTINGS.model_copy(update={"logits": "chunked"}), 32)
    monkeypatch.setattr(student_module, "MANY_LOGITS", 3 * 32 * 100 - 1)
    student = Student(model, SETTINGS, 32)
    assert not student.is_chunked
    batch = collate(dataset.__getitems__([0, 1]))
    assert student(batch).loss.isfinite()


def test_a_head_that_is_no_linear_layer_is_refused():
    class Doubling(torch.nn.Linear):
        def forward(self, inputs):
            return 2 * super().forward(inputs)

    model = gptj()
    model.lm_head = Doubling(32, 100)
    with pytest.raises(IncompatibleError, match="linear output layer"):
        plain_head(model)


def test_looking_at_the_head_changes_nothing(tiny_model_path):
    model = LlamaForCausalLM.from_pretrained(tiny_model_path).eval()
    ids = torch.arange(20)[None]
    state, before = torch.get_rng_state(), model(input_ids=ids).logits
    assert plain_head(model).softcap is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_auto_takes_pieces_where_there_are_many_logits(monkeypatch, tiny_model_path):
    model = LlamaForCausalLM.from_pretrained(tiny_model_path)
    assert not Student(model, SETTINGS, 32).is_chunked
    monkeypatch.setattr(student_module, "MANY_LOGITS", 3 * 32 * 100)
    assert not Student(model, SETTINGS, 32).is_chunked
    monkeypatch.setattr(student_module, "MANY_LOGITS", 3 * 32 * 100 - 1)
    assert Student(model, SETTINGS, 32).is_chunked
    whole = SETTINGS.model_copy(update={"logits": "whole"})
    assert not Student(model, whole, 32).is_chunked


@pytest.mark.usefixtures("few_logits_at_a_time")
def test_a_run_in_pieces_follows_one_of_whole_logits(tiny_model_path, dataset, tmp_path):
    """Tied weights, dropout, accumulation, a loader's padding: the same course within rounding."""
    curves = []
    for logits in ("whole", "chunked"):
        settings = SETTINGS.model_copy(
            update={"logits": logits, "gradient_accumulation": 2, "learning_rate": 1e-3}
        )
        output = Location.parse(tmp_path / logits)
        result = train(tiny_model_path, dataset, settings, output, tmp_path / "work").artifact
        curves.append([point.loss for point in result.manifest.loss_curve])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
