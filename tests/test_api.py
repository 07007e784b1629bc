"""The public Python API: what signatures name can be had, is typed, and says what it raises."""

import importlib
import inspect
import re
import subprocess
import sys
import typing

import polars as pl
import pyarrow as pa
import pytest
import torch
import xarray

import fusestore as fs
from fusestore.store import layout
from fusestore.store.manifest import Frozen

PUBLIC = {name: getattr(fs, name) for name in fs.__all__}
MODULES = [fs, *(value for value in PUBLIC.values() if inspect.ismodule(value))]
EXPORTED = [getattr(module, name) for module in MODULES for name in getattr(module, "__all__", ())]
EXPORTED += [fs.FusestoreError, *vars(importlib.import_module("fusestore.errors")).values()]
# The module that a plugin of an artifact kind imports: docs/how-to/add-an-artifact-kind.md.
EXPORTED += vars(importlib.import_module("fusestore.store.registry")).values()

VERBS = ["build_corpus", "capture", "align", "forecast", "fuse", "train", "merge", "compare"]
VERBS += ["describe", "tree", "usage", "report", "remove", "rename", "collect_garbage"]
VERBS += ["verify", "repair", "push", "pull", "sync", "publish", "artifacts"]
VERBS += ["import_rows", "export"]
VERBS += ["open_corpus", "open_cache", "open_alignment", "open_fused", "open_model"]


def signatures():
    """Public functions, and the public methods and properties of public classes, by name."""
    for name, value in PUBLIC.items():
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for member, found in inspect.getmembers_static(value):
                function = inspect.unwrap(getattr(found, "__func__", found))
                function = getattr(function, "fget", None) or getattr(function, "func", function)
                public = not member.startswith("_") or member in ("__init__", "__getitem__")
                own = str(getattr(function, "__module__", "")).startswith("fusestore")
                if public and own and inspect.isfunction(function):
                    yield f"{name}.{member}", function


def classes_in(hint):
    """Every class of fusestore's that a type names."""
    if inspect.isclass(hint) and not typing.get_args(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from classes_in(argument)


SIGNATURES = dict(signatures())


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_a_signature_names_is_public(name):
    function = SIGNATURES[name]
    parameters = inspect.signature(function).parameters.values()
    untyped = {
        parameter.name for parameter in parameters if parameter.annotation is parameter.empty
    }
    assert untyped <= {"self", "cls"}
    # A name that only type checkers import is that of a public class.
    others = {"pl": pl, "pa": pa, "xr": xarray, "Tensor": torch.Tensor}
    names = {**PUBLIC, **others, **vars(sys.modules[function.__module__])}
    for hint in typing.get_type_hints(function, localns=names).values():
        for found in classes_in(hint):
            if not found.__module__.startswith("fusestore") or found is layout.Store:
                continue
            assert any(found is value for value in EXPORTED), f"{found} is not exported"
            assert inspect.getdoc(found)


def test_what_is_printed_is_as_short_as_in_a_notebook():
    """`str` of a result with a `repr` of its own is no list of all its fields."""
    own = [value for value in EXPORTED if inspect.isclass(value) and "__repr__" in vars(value)]
    results = [value for value in own if issubclass(value, Frozen)]
    assert {fs.Forecast, fs.Comparison} <= set(results)
    assert not [value for value in results if "__str__" not in vars(value)]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_what_it_raises(verb):
    text = inspect.getdoc(getattr(fs.Store, verb))
    assert "Raises:" in text or "errors as for `push`" in text.lower().replace("\n", " ")
    raised = re.findall(r"^    ([A-Z]\w+Error(?:, [A-Z]\w+Error)*):", text, re.MULTILINE)
    errors = vars(importlib.import_module("fusestore.errors"))
    for name in ", ".join(raised).split(", ") if raised else ():
        assert issubclass(errors[name], fs.FusestoreError)


def test_the_stages_are_those_of_the_command_line():
    for name in fs.stages.__all__:
        hints = typing.get_type_hints(getattr(fs.stages, name), localns=PUBLIC)
        assert typing.get_origin(hints["return"]) is fs.StageResult
    with pytest.raises(AttributeError, match="captrue"):
        fs.stages.captrue  # noqa: B018


def test_opening_a_store_is_light(tmp_path):
    code = f"""
import sys
import fusestore as fs
store = fs.open_store({str(tmp_path)!r})
print(repr(store), store.artifacts(), fs.open_store(store) == store)
print(sorted({{"torch", "transformers", "zarr", "polars", "numba"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"Store('{tmp_path}') [] True", "[]"]
