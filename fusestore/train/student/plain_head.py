"""Whether a model's logits are a plain product of hidden states and output embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusestore.errors import IncompatibleError


class PlainHead(NamedTuple):
    """logits = hidden @ weight.T + bias, capped to c · tanh(logits / c) where c is `softcap`."""

    softcap: float | None


def plain_head(model: Any) -> PlainHead:  # noqa: ANN401
    """Check, by running the model, that its logits are a plain product of its hidden states.

    The backbone's hidden states are replaced by random states with large logits, so that any
    scaling, capping or other operation of the model's forward changes the result.

    Raises:
        IncompatibleError: the logits are another function of the hidden states.
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
        actual = _logits_of(model, backbone, hidden)
    if actual.shape != logits.shape or not torch.allclose(actual, logits, rtol=1e-5, atol=1e-3):
        raise _no_plain_head(model, "does more to its logits than multiply and cap them")
    return PlainHead(softcap)


def _logits_of(model: Any, backbone: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
    """The logits that the model's own forward computes from hidden states [1, l, H]."""
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
    """The module that computes the hidden states; None if the model has no separate backbone."""
    backbone = getattr(model, model.base_model_prefix, None)
    return None if backbone is model else backbone


def _no_plain_head(model: Any, why: str) -> IncompatibleError:  # noqa: ANN401
    return IncompatibleError(
        f"{type(model).__name__} {why}, so its loss cannot be chunked. Train with "
        "logits = 'whole' and, if memory is short, a smaller batch_size and more "
        "gradient_accumulation."
    )
