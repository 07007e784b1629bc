"""`Listed`: the type of a setting that is kept as a tuple and may be given as a list.

Type checkers take what a field is for what its class may be made of, unless its type is a
descriptor: then a value is given as `__set__` takes it and read as `__get__` returns it. So without
pydantic's plugin, too, they accept what pydantic accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    Kept = TypeVar("Kept")
    Given = TypeVar("Given")

    class Listed(Generic[Kept, Given]):
        """Read as `tuple[Kept, ...]`, given as any sequence of `Given`."""

        def __get__(self, instance: object, owner: type | None = None) -> tuple[Kept, ...]: ...
        def __set__(self, instance: object, value: Sequence[Given]) -> None: ...

else:

    class Listed:
        """`Listed[kept, given]` is `tuple[kept, ...]`."""

        def __class_getitem__(cls, types: tuple[Any, Any]) -> Any:  # noqa: ANN401 - a type
            return tuple[types[0], ...]


def listed(*values: object) -> Any:  # noqa: ANN401 - stands for a `Listed` of any types
    """The default of a setting: the values as it keeps them."""
    return values
