"""Padding and types of a batch."""

import pytest
import torch

from fusestore.data.collation import collate
from fusestore.errors import InvalidInputError


def sample(length, window):
    return {
        "input_ids": torch.arange(1, length + 1, dtype=torch.int32),
        "next_ids": torch.arange(2, length + 2, dtype=torch.int32),
        "fused_ids": torch.ones(length, 2, dtype=torch.int32),
        "fused_logprobs": torch.full((length, 2), -1.0),
        "fused_tail": torch.full((length,), -2.0),
        "fused_mask": torch.ones(length, dtype=torch.bool),
        "document_end": torch.arange(length) == length - 1,
        "fused_sampled": torch.tensor(window == 1),
        "window": torch.tensor(window),
    }


def test_padding():
    batch = collate([sample(3, 5), sample(1, 2)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["next_ids"].tolist() == [[2, 3, 4], [2, -100, -100]]
    assert batch["fused_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["fused_ids"][1].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert torch.isneginf(batch["fused_logprobs"][1, 1:]).all()
    assert torch.isneginf(batch["fused_tail"][1, 1:]).all()
    assert batch["fused_sampled"].tolist() == [False, False]
    assert batch["window"].tolist() == [5, 2]
    kinds = {name: tensor.dtype for name, tensor in batch.items()}
    assert kinds == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "next_ids": torch.int64,
        "fused_ids": torch.int64,
        "fused_logprobs": torch.float32,
        "fused_tail": torch.float32,
        "fused_mask": torch.bool,
        "fused_sampled": torch.bool,
        "window": torch.int64,
    }


def test_equal_lengths_and_nothing():
    batch = collate([sample(2, 0), sample(2, 1)])
    assert batch["attention_mask"].all()
    assert batch["fused_sampled"].tolist() == [False, True]
    assert batch["fused_logprobs"].shape == (2, 2, 2)
    with pytest.raises(InvalidInputError):
        collate([])
