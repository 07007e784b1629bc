"""A griffe extension: the description of a setting is the documentation of its attribute."""

from __future__ import annotations

import importlib
from typing import Any

import griffe
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

_OTHERS = {"Recipe", "RecipeSource"}


class FieldDescriptions(griffe.Extension):
    """Gives each field of a settings class its description, its default, and no call of `Field`.

    The class is imported, which is quick: the command line imports it to show its help.
    """

    def on_class(self, *, cls: griffe.Class, **arguments: Any) -> None:  # noqa: ANN401
        """Document the fields of one class."""
        del arguments
        if not cls.name.endswith("Settings") and cls.name not in _OTHERS:
            return
        found = getattr(importlib.import_module(cls.module.path), cls.name)
        if not issubclass(found, BaseModel):
            return
        for name, field in found.model_fields.items():
            attribute = cls.members.get(name)
            if not isinstance(attribute, griffe.Attribute):
                continue
            if field.description and not attribute.docstring:
                attribute.docstring = griffe.Docstring(field.description, parent=attribute)
            default = field.get_default(call_default_factory=True)
            attribute.value = None if default is PydanticUndefined else repr(default)
