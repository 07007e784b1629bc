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
def run_once(backbone: Any) -> Iterator[list[slice]]:  # noqa: ANN401
    """Inside, the backbone runs at its first call, and every call returns part of its result.

    Yields a list of one slice: the positions of the hidden states that a call returns.
    """
    positions = [slice(None)]
    original, was_own = backbone.forward, "forward" in vars(backbone)
    results: list[Any] = []

    def forward(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not results:
            results.append(original(*args, **kwargs))
        return _part(results[0], positions[0])

    backbone.forward = forward
    try:
        yield positions
    finally:
        if was_own:
            backbone.forward = original
        else:
            del backbone.forward


def _part(result: Any, positions: slice) -> Any:  # noqa: ANN401
    """A backbone's result with its hidden states [batch, time, width] at some positions."""
    if isinstance(result, torch.Tensor):
        return result[:, positions]
    if isinstance(result, tuple):
        return (result[0][:, positions], *result[1:])
    first = next(iter(result))
    return type(result)(**{**result, first: result[first][:, positions]})
