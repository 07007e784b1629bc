"""A causal language model that returns the loss of a batch, over whole or chunked logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from fusestore.data.collation import model_inputs
from fusestore.errors import IncompatibleError
from fusestore.losses.linear_loss import linear_fusion_terms
from fusestore.losses.logit_loss import fusion_terms
from fusestore.losses.row_losses import FusionTerms
from fusestore.losses.sparse_target import check_ids
from fusestore.models.loading import output_width
from fusestore.train.held_out import autocast
from fusestore.train.settings import TrainSettings
from fusestore.train.student.document_masking import check_document_masking
from fusestore.train.student.plain_head import PlainHead, backbone_of, plain_head

_Result = TypeVar("_Result")

MANY_LOGITS = 1 << 28
"""Logits of a batch above which `auto` chunks them: 1 GiB in float32."""


class Student(torch.nn.Module):
    """The model and its objective as one module with one forward pass, for data parallelism.

    Attributes:
        model: the causal language model.
        objective: what is minimized; it changes with λ from step to step.
        num_positions: what the means of the loss are taken over, see `count_positions`; None: the
            positions of each batch.
        is_chunked: whether logits are made and freed a chunk of tokens at a time.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers is untyped
        settings: TrainSettings,
        window_length: int,
    ) -> None:
        """Wrap a model.

        Raises:
            IncompatibleError: `settings.logits` is `chunked` and the model's logits are no plain
                product of hidden states and output embeddings; or `settings.attend_within` is
                `document` and the model does not support document masking.
        """
        super().__init__()
        self.model = model
        if settings.attend_within == "document":
            check_document_masking(model, min(settings.batch_size, 2))
        self.objective = settings.fusion_objective(settings.lm_weights[0])
        self.num_positions: Tensor | None = None
        self._precision = settings.precision
        # DeepSpeed reads sizes that are "auto" from this attribute.
        self.config = model.config.get_text_config()
        self._width = output_width(model)
        logits = settings.batch_size * window_length * self._width
        # FSDP reads this attribute for the blocks to shard; some models also name blocks they lack.
        blocks = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(blocks & set(model._no_split_modules or ()))
        self._head: PlainHead | None = None
        if settings.logits == "chunked":
            self._head = plain_head(model)
        elif settings.logits == "auto" and logits > MANY_LOGITS:
            try:
                self._head = plain_head(model)
            except IncompatibleError:
                self._head = None
        self.is_chunked = self._head is not None

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """The loss of a batch of `fusestore.data.collate`; see `fusion_terms`.

        Raises:
            IncompatibleError: the batch holds token ids that the model does not have.
        """
        check_ids(batch["input_ids"], self._width, "input_ids")
        # Inside forward: DeepSpeed's engine ends a context that surrounds its call.
        with autocast(batch["input_ids"].device, self._precision):
            return self._terms(batch)

    def _terms(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        inputs = model_inputs(batch)
        if self._head is None:
            logits = self.model(**inputs).logits
            return fusion_terms(logits, batch, self.objective, num_positions=self.num_positions)
        # The modules are not attributes: they would be registered a second time.
        backbone, output = backbone_of(self.model), self.model.get_output_embeddings()
        return linear_fusion_terms(
            backbone(**inputs).last_hidden_state,
            output.weight,
            batch,
            self.objective,
            bias=output.bias,
            softcap=self._head.softcap,
            num_positions=self.num_positions,
        )

    def with_model(self, function: Callable[[Any], _Result]) -> _Result:
        """Call a function with the model; sharded weights are gathered during the call."""
        return function(self.model)
