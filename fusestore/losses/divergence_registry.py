"""The divergences by name: those of this package, and those that a program registers.

Does not import torch, so that settings are validated before anything slow is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fusestore.errors import InvalidInputError, did_you_mean
from fusestore.plugins import load_expected_plugins, record

if TYPE_CHECKING:
    from torch import Tensor

Divergence = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""`(target, student) -> (value, gradient)` over N rows of m outcomes.

target: log P, floating [N, m]. Σ P = 1 in every row; −inf: no mass, or no such outcome.
student: logits [N, m] of the same dtype, shifted by any constant; −inf: no such outcome.
value: nats [N].
gradient: of the value by `student`, [N, m]. Value and gradient of rows that are −inf throughout in
    the target are not used; they may be NaN.
"""


class _Entry(NamedTuple):
    function: Divergence
    unbiased: bool


BUILT_IN = ("cross_entropy", "forward_kl", "reverse_kl", "jensen_shannon")
"""The divergences of `fusestore.losses.divergences`."""

_ENTRIES: dict[str, _Entry] = {}


def register_divergence(name: str, *, unbiased: bool = False) -> Callable[[Divergence], Divergence]:
    """Register the decorated function as the divergence of this name; see `Divergence`.

    `TrainSettings.divergence`, a fusion.toml and the command line
    (`fusestore --plugin MODULE train … --divergence NAME`) take the name.

    Args:
        name: its name in settings.
        unbiased: whether its gradient is linear in P, so that samples of P give an unbiased
            gradient. Otherwise the trainer raises an error for samples.

    Raises:
        InvalidInputError: the name is taken.
    """

    def register(function: Divergence) -> Divergence:
        taken = name in _ENTRIES or (name in BUILT_IN and function.__module__ != _BUILT_IN_MODULE)
        if taken:
            raise InvalidInputError(
                f"A divergence named {name!r} exists already. Choose another name."
            )
        _ENTRIES[name] = _Entry(function, unbiased)
        record(function)
        return function

    return register


def divergence_names() -> list[str]:
    """All names: the built-in ones first, then the registered ones."""
    return [*BUILT_IN, *sorted(_ENTRIES.keys() - set(BUILT_IN))]


def check_divergence(name: str) -> None:
    """Check that a divergence of this name exists.

    Raises:
        InvalidInputError: it does not; the nearest names are suggested.
    """
    if name in divergence_names():
        return
    problems = load_expected_plugins()
    names = divergence_names()
    if name in names:
        return
    hint = did_you_mean(name, names) or f"Choose from {names}."
    raise InvalidInputError(
        " ".join(
            [
                f"No divergence is named {name!r}. {hint} Register your own with "
                "@fusestore.losses.register_divergence, in a module given with --plugin.",
                *problems,
            ]
        )
    )


def get_divergence(name: str) -> Divergence:
    """The function of this name.

    Raises:
        InvalidInputError: no divergence has this name.
    """
    return _entry(name).function


def is_unbiased(name: str) -> bool:
    """Whether the gradient is unbiased where the rows of the target are samples.

    Raises:
        InvalidInputError: no divergence has this name.
    """
    return _entry(name).unbiased


_BUILT_IN_MODULE = "fusestore.losses.divergences"


def _entry(name: str) -> _Entry:
    check_divergence(name)
    importlib.import_module(_BUILT_IN_MODULE)
    return _ENTRIES[name]
