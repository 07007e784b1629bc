"""Documents packed into one window are read as if each were alone; with real models."""

import itertools

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusestore.data import FusedDataset, collate, model_inputs
from fusestore.errors import FingerprintMismatchError, IncompatibleError
from fusestore.losses import fusion_terms
from fusestore.train import check_document_masking
from fusestore.train.student.student import Student
from tests.helpers.fused_folder import random_arrays, write_fused
from tests.helpers.tiny_job import paragraphs
from tests.helpers.train_runs import SETTINGS, run, signal_after


def documents_dataset(folder, documents, window_length, k=4):
    """A fused dataset of given token ids, its distributions random."""
    input_ids = np.concatenate(documents).astype(np.int32)
    arrays = random_arrays(len(input_ids), k=k, vocab_size=int(input_ids.max()) + 1)
    ends = np.cumsum([len(document) for document in documents]) - 1
    next_ids = np.append(input_ids[1:], -100).astype(np.int32)
    next_ids[ends] = -100
    document = np.repeat(np.arange(len(documents)), [len(each) for each in documents])
    arrays |= {"input_ids": input_ids, "next_ids": next_ids, "document": document.astype(np.int32)}
    return FusedDataset(
        write_fused(folder, arrays, window_length=window_length, chunk_rows=window_length)
    )


def pieces(batch):
    """Rows and slices of the documents in a batch, by what the dataset says of them."""
    for row, positions in enumerate(batch["position_ids"]):
        length = int(batch["attention_mask"][row].sum())
        starts = [*np.flatnonzero(positions[:length] == 0).tolist(), length]
        for start, stop in itertools.pairwise(starts):
            yield row, slice(start, stop)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("model_path", "window"), [("smollm2_path", 96), ("gemma3_path", 560)])
def test_logits_of_packed_documents_are_those_of_each_alone(
    request, tmp_path, model_path, window, attention
):
    path = request.getfixturevalue(model_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    texts = paragraphs()[:18]
    documents = [tokenizer(text[:80])["input_ids"] for text in texts[:2]]
    # In the window, longer than Gemma's sliding window of 512; the window's end cuts it.
    rest = window + 40 - sum(map(len, documents))
    documents.append(tokenizer(" ".join(texts[2:]))["input_ids"][:rest])
    dataset = documents_dataset(tmp_path / "fused", documents, window)
    batch = collate([dataset[0], dataset[1]], document_masking=True)
    listed = list(pieces(batch))
    assert len(listed) == 4
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    ).eval()
    check_document_masking(model, 2)
    with torch.no_grad():
        packed = model.model(**model_inputs(batch)).last_hidden_state
        for row, here in listed:
            alone = model.model(batch["input_ids"][row : row + 1, here]).last_hidden_state[0]
            # All logits of Gemma's 262k tokens would be a gigabyte.
            some = torch.unique(torch.linspace(0, len(alone) - 1, 16).long())
            expected, found = model.lm_head(alone[some]), model.lm_head(packed[row, here][some])
            assert float((found - expected).abs().max()) < 1e-3
            assert float(expected.abs().max()) > 10
        # What a document's beginning would be if the documents before it were seen.
        row, here = listed[1]
        joined = model.model(batch["input_ids"][row : row + 1, : here.stop]).last_hidden_state[0]
        difference = model.lm_head(joined[here]) - model.lm_head(packed[row, here])
        assert float(difference.abs().max()) > 1


def test_positions_begin_with_documents_windows_and_padding(tmp_path):
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]
    dataset = documents_dataset(tmp_path / "fused", documents, 7)
    samples = [dataset[0], dataset[1]]
    batch = collate(samples, document_masking=True)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1, 2], [0, 1, 2, 0, 1, 0, 1]]
    assert samples[0]["document_end"].tolist() == [False, False, True, True, *[False] * 3]
    assert batch["attention_mask"][1].tolist() == [1, 1, 1, 1, 1, 0, 0]
    # The row of a document's last token has no label: nobody learns where another begins.
    assert (batch["next_ids"] == -100).tolist() == [
        [False, False, True, True, False, False, False],
        [False, False, True, False, True, True, True],
    ]
    assert model_inputs(batch).keys() == {"input_ids", "position_ids", "use_cache"}
    plain = collate(samples)
    assert "position_ids" not in plain
    assert model_inputs(plain)["attention_mask"] is plain["attention_mask"]
    assert model_inputs(collate(samples[:1]))["attention_mask"] is None


@pytest.mark.parametrize("logits", ["whole", "chunked"])
def test_the_loss_is_that_of_each_document_alone(tiny_model_path, tmp_path, logits):
    rng = np.random.default_rng(2)
    documents = [rng.integers(0, 99, length).tolist() for length in (5, 1, 9, 12, 3, 8, 20)]
    dataset = documents_dataset(tmp_path / "fused", documents, 16)
    settings = SETTINGS.model_copy(update={"attend_within": "document", "logits": logits})
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32).eval()
    student = Student(model, settings, 16)
    batch = collate([dataset[i] for i in range(len(dataset))], document_masking=True)
    found = student(batch)
    rows = torch.zeros(*batch["input_ids"].shape, 100)
    for row, here in pieces(batch):
        rows[row, here] = model(batch["input_ids"][row : row + 1, here]).logits[0]
    expected = fusion_terms(rows, batch, settings.fusion_objective(settings.lm_weight))
    for name in ("loss", "lm", "fused"):
        assert float(getattr(found, name).detach()) == pytest.approx(
            float(getattr(expected, name).detach()), 1e-5
        )


def test_training_with_it_is_another_run_and_resumes_exactly(tiny_model_path, dataset, tmp_path):
    settings = SETTINGS.model_copy(update={"attend_within": "document"})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    apart = run(tiny_model_path, dataset, settings, whole)
    assert apart.manifest.plan.settings.attend_within == "document"
    joined = run(tiny_model_path, dataset, SETTINGS, tmp_path / "joined")
    # The dataset's windows cut documents, so `auto` is as it was before.
    assert joined.manifest.plan.settings.attend_within == "window"
    assert apart.manifest.loss_curve[0].loss != joined.manifest.loss_curve[0].loss

    with pytest.raises(KeyboardInterrupt):
        run(tiny_model_path, dataset, settings, broken, progress=signal_after(2))
    with pytest.raises(
        FingerprintMismatchError, match="attend_within: 'document' in the checkpoint"
    ):
        run(
            *(tiny_model_path, dataset),
            SETTINGS.model_copy(update={"attend_within": "window"}),
            broken,
        )
    # Whatever a run was begun with, `auto` continues it.
    settings = settings.model_copy(update={"attend_within": "auto"})
    run(tiny_model_path, dataset, settings, broken)
    name = "model/model.safetensors"
    assert (whole / name).read_bytes() == (broken / name).read_bytes()


def test_a_model_that_does_not_keep_them_apart_is_refused(tiny_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path, dtype=torch.float32).train()
    check_document_masking(model)
    assert model.training
    forward = model.forward

    def deaf(input_ids, position_ids=None, **inputs):
        return forward(input_ids=input_ids, **inputs)

    model.forward = deaf
    settings = SETTINGS.model_copy(update={"attend_within": "document"})
    with pytest.raises(IncompatibleError, match=r"not support document masking.*attend_within"):
        Student(model, settings, 16)
