"""Finds the part of a model that computes hidden states, by running the model.

Names do not tell: the backbone of most models is `base_model`, but OPT calls `model.decoder`, and
Llama 4's text model names an attribute it does not have.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def called_modules(model: Any) -> Iterator[Counter[str]]:  # noqa: ANN401 - transformers is untyped
    """Count calls of the outermost modules without the output head, by name, while inside.

    A module that contains the head computes logits, so the modules that it calls are counted
    instead. The first called module is the first key.
    """
    calls: Counter[str] = Counter()
    depth = 0

    def enter(name: str) -> None:
        nonlocal depth
        if depth == 0:
            calls[name] += 1
        depth += 1

    def leave() -> None:
        nonlocal depth
        depth -= 1

    head = model.get_output_embeddings()
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if module is model or any(part is head for part in module.modules()):
                continue
            hooks.callback(
                module.register_forward_pre_hook(lambda *_, name=name: enter(name)).remove
            )
            hooks.callback(module.register_forward_hook(lambda *_: leave()).remove)
        yield calls


def backbone_among(model: Any, calls: Counter[str]) -> str | None:  # noqa: ANN401
    """The name of the largest of the `called_modules`; None if it is called more than once."""
    if not calls:
        return None
    name = max(calls, key=lambda name: sum(1 for _ in model.get_submodule(name).modules()))
    return name if calls[name] == 1 else None


@contextlib.contextmanager
def run_once(backbone: Any) -> Iterator[list[slice | torch.Tensor]]:  # noqa: ANN401
    """Inside, the backbone runs at its first call, and every call returns part of its result.

    Yields a list of one element: the positions of the hidden states that a call returns. A slice is
    of the sequence; a tensor has indices into all rows of the batch, one after the other, and the
    result is a batch of one row.
    """
    positions: list[slice | torch.Tensor] = [slice(None)]
    original, was_own = backbone.forward, "forward" in vars(backbone)
    results: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not results:
            results.append(original(*args, **kwargs))
        return part_at(results[0], positions[0])

    backbone.forward = forward
    try:
        yield positions
    finally:
        if was_own:
            backbone.forward = original
        else:
            del backbone.forward


def part_at(result: Any, positions: slice | torch.Tensor) -> Any:  # noqa: ANN401
    """A backbone's result with its states [batch, time, width] at positions as in `run_once`."""
    if isinstance(result, torch.Tensor):
        if isinstance(positions, slice):
            return result[:, positions]
        # On the device of the states, which is that of the last layer of a model on several.
        return result.flatten(0, 1)[positions.to(result.device)][None]
    if isinstance(result, tuple):
        return (part_at(result[0], positions), *result[1:])
    first = next(iter(result))
    return type(result)(**{**result, first: part_at(result[first], positions)})
