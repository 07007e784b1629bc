"""A causal language model that answers a batch with its loss, over whole logits or in pieces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fusestore.data.collation import model_inputs
from fusestore.errors import IncompatibleError
from fusestore.losses.linear_loss import linear_fusion_terms
from fusestore.losses.logit_loss import FusionTerms, fusion_terms
from fusestore.losses.sparse_target import check_ids
from fusestore.models.loading import output_width
from fusestore.train.document_masking import check_apart
from fusestore.train.evaluate import autocast
from fusestore.train.settings import TrainSettings

_Result = TypeVar("_Result")

MANY_LOGITS = 1 << 28
"""Of a batch: above this, 1 GiB in float32, `auto` makes them in pieces."""


class Student(torch.nn.Module):
    """The model and its objective as one module, so that data parallelism sees one forward pass.

    Attributes:
        model: the causal language model.
        objective: what is minimised; the loop changes it where λ does.
        in_pieces: whether logits are made and dropped piece by piece.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers is untyped
        settings: TrainSettings,
        window_length: int,
    ) -> None:
        """Wrap a model.

        Raises:
            IncompatibleError: `settings.logits` is `pieces` and the model's logits are no plain
                product of hidden states and output embeddings; or attention is to be kept within
                documents, and this model does not do that.
        """
        super().__init__()
        self.model = model
        if settings.attend_within == "document":
            check_apart(model, min(settings.batch_size, 2))
        self.objective = settings.fusion_objective(settings.lm_weights[0])
        self._precision = settings.precision
        # DeepSpeed's sizes that are "auto" are taken from here.
        self.config = model.config.get_text_config()
        self._width = output_width(model)
        logits = settings.batch_size * window_length * self._width
        # FSDP asks what it wraps which blocks to shard by themselves; some models name others' too.
        blocks = {type(module).__name__ for module in model.modules()}
        self._no_split_modules = sorted(blocks & set(model._no_split_modules or ()))
        self._head: PlainHead | None = None
        if settings.logits == "pieces":
            self._head = plain_head(model)
        elif settings.logits == "auto" and logits > MANY_LOGITS:
            try:
                self._head = plain_head(model)
            except IncompatibleError:
                self._head = None
        self.in_pieces = self._head is not None

    def forward(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        """The loss of a batch of `fusestore.data.collate`; see `fusion_terms`.

        Raises:
            IncompatibleError: the batch holds token ids that the model does not have.
        """
        check_ids(batch["input_ids"], self._width, "input_ids")
        # In here: DeepSpeed's engine would end a context that it is called in.
        with autocast(batch["input_ids"].device, self._precision):
            return self._terms(batch)

    def _terms(self, batch: Mapping[str, Tensor]) -> FusionTerms:
        inputs = model_inputs(batch)
        if self._head is None:
            return fusion_terms(self.model(**inputs).logits, batch, self.objective)
        # The modules are looked up, not kept: they would be registered a second time.
        backbone, output = backbone_of(self.model), self.model.get_output_embeddings()
        return linear_fusion_terms(
            backbone(**inputs).last_hidden_state,
            output.weight,
            batch,
            self.objective,
            bias=output.bias,
            softcap=self._head.softcap,
        )

    def with_model(self, function: Callable[[Any], _Result]) -> _Result:
        """What a function makes of the model, whose weights are whole meanwhile."""
        return function(self.model)


class PlainHead(NamedTuple):
    """Says that logits = hidden @ weight.T + bias, capped to c · tanh(logits / c) if there is c."""

    softcap: float | None


def plain_head(model: Any) -> PlainHead:  # noqa: ANN401
    """See, by trying, that the model's logits are a plain product of its hidden states.

    The model's own forward is given hidden states that make large logits, in the place of its
    backbone's, so that any scaling, capping or other step of its own shows.

    Raises:
        IncompatibleError: they are not.
    """
    backbone, output = backbone_of(model), model.get_output_embeddings()
    if backbone is None or type(output) is not torch.nn.Linear:
        raise _no_plain_head(model, "has no separate backbone and linear output layer")
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    generator = torch.Generator().manual_seed(0)
    weight = output.weight.detach()
    hidden = torch.randn(1, 8, weight.shape[1], generator=generator)
    hidden = hidden.to(weight.device, weight.dtype)
    with torch.no_grad():
        logits = torch.nn.functional.linear(hidden, weight, output.bias)
        factor = 50.0 / logits.float().std().clamp(min=1e-6)
        hidden = hidden * factor
        logits = torch.nn.functional.linear(hidden, weight, output.bias)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        own = _logits_of(model, backbone, hidden)
    if own.shape != logits.shape or not torch.allclose(own, logits, rtol=1e-5, atol=1e-3):
        raise _no_plain_head(model, "does more to its logits than multiply and cap them")
    return PlainHead(softcap)


def _logits_of(model: Any, backbone: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
    """What the model's own forward makes of hidden states [1, l, H]."""
    forward, training = backbone.forward, model.training

    def with_other_hidden_states(*ids: Tensor, **inputs: Any) -> Any:  # noqa: ANN401
        result = forward(*ids, **inputs)
        result.last_hidden_state = hidden
        return result

    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    backbone.forward = with_other_hidden_states
    # Dropout would draw from the global generator.
    model.eval()
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        backbone.forward = forward
        model.train(training)
    return logits


def backbone_of(model: Any) -> Any:  # noqa: ANN401
    """What makes the hidden states; None where the model is not so divided."""
    backbone = getattr(model, model.base_model_prefix, None)
    return None if backbone is model else backbone


def _no_plain_head(model: Any, why: str) -> IncompatibleError:  # noqa: ANN401
    return IncompatibleError(
        f"{type(model).__name__} {why}, so its loss cannot be taken piece by piece. Train with "
        "logits = 'whole' and, if memory is short, a smaller batch_size and more "
        "gradient_accumulation."
    )
