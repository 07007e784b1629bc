"""From samples (windows of any length) to one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusestore.cache.rows import NO_LABEL
from fusestore.data.windows import Windows, pad_right
from fusestore.errors import InvalidInputError

_FIELDS = {
    "input_ids",
    "next_ids",
    "fused_ids",
    "fused_logprobs",
    "fused_tail",
    "fused_mask",
    "document_end",
    "fused_sampled",
    "window",
}


def collate(
    samples: Sequence[Mapping[str, Tensor]], *, document_masking: bool = False
) -> dict[str, Tensor]:
    """Stack B windows, padding shorter ones on the right to the longest, L.

    Args:
        samples: of `FusedDataset`; samples that it read together are not copied again, except
            where a dtype changes.
        document_masking: whether attention stays within each document of a window; adds
            `position_ids`, which `model_inputs` passes to the model.

    Returns:
        `input_ids` int64 [B, L] (0 in padding), `attention_mask` int64 [B, L], `next_ids` int64
        [B, L] (already shifted: `logits[:, i]` is scored against `next_ids[:, i]`; −100 for none),
        `fused_ids` int64 [B, L, k], `fused_logprobs` float32 [B, L, k] (−inf: unused),
        `fused_tail` float32 [B, L], `fused_mask` bool [B, L], `fused_sampled` bool [B], `window`
        int64 [B]. With `document_masking` also `position_ids` int64 [B, L], which begin at 0 with
        every document, with the window, and with its padding.

    Raises:
        InvalidInputError: no samples, or samples that lack a field of `FusedDataset`.
    """
    if not samples:
        raise InvalidInputError("A batch needs at least one window.")
    windows: Windows | _Separate = (
        samples if isinstance(samples, Windows) and not samples.is_cut else _Separate(samples)
    )
    lengths = torch.tensor(windows.lengths)
    is_token = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    stacked = windows.stacked
    batch = {
        "input_ids": stacked("input_ids", 0).long(),
        "attention_mask": is_token.long(),
        "next_ids": stacked("next_ids", NO_LABEL).long(),
        "fused_ids": stacked("fused_ids", 0).long(),
        "fused_logprobs": stacked("fused_logprobs", -torch.inf),
        "fused_tail": stacked("fused_tail", -torch.inf),
        "fused_mask": stacked("fused_mask", 0),
        "fused_sampled": stacked("fused_sampled", 0),
        "window": stacked("window", 0),
    }
    if document_masking:
        batch["position_ids"] = _position_ids(stacked("document_end", 0), lengths)
    return batch


def model_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments for a causal language model of transformers.

    With `position_ids`, the model gets these and no mask: transformers then derives the beginnings
    of documents and limits attention to the document, if no cache is used (`sdpa`, `eager`,
    `flex_attention`; `flash_attention_2` for one window at a time).
    `fusestore.train.check_document_masking` tests whether a model supports it.

    Args:
        batch: from `collate`.
    """
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
    if "position_ids" in batch:
        return {**inputs, "position_ids": batch["position_ids"]}
    # Attention is faster without a mask.
    mask = batch["attention_mask"]
    return {**inputs, "attention_mask": None if bool(mask.all()) else mask}


def _position_ids(document_end: Tensor, lengths: Tensor) -> Tensor:
    """Distance from the beginning of the document, or of the padding, in the window: int64 [B, L].

    Args:
        document_end: bool [B, L].
        lengths: int64 [B] of the windows without padding.
    """
    position = torch.arange(document_end.shape[1]).expand(document_end.shape)
    begins = torch.roll(document_end, 1, dims=1) | (position == lengths[:, None])
    begins[:, 0] = True
    return position - torch.where(begins, position, 0).cummax(1).values


class _Separate:
    """Samples that were read one by one, with the interface of `Windows`."""

    def __init__(self, samples: Sequence[Mapping[str, Tensor]]) -> None:
        missing = _FIELDS - samples[0].keys()
        if missing:
            raise InvalidInputError(
                f"Samples lack {', '.join(sorted(missing))}, which the dataset gives: something "
                "between the dataset and collate removed it. transformers' Trainer does, unless "
                "its arguments have remove_unused_columns=False."
            )
        self.lengths = [len(sample["input_ids"]) for sample in samples]
        self._samples = samples

    def stacked(self, name: str, padding: float) -> Tensor:
        """See `Windows.stacked`."""
        values = [sample[name] for sample in self._samples]
        if values[0].ndim == 0 or min(self.lengths) == max(self.lengths):
            return torch.stack(values)
        return pad_right(values, padding)
