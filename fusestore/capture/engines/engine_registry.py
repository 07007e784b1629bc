"""Engines by name. What an engine can do is known without importing it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple, TypeVar

from fusestore import plugins
from fusestore.cache.manifest import DEFAULT_ENGINE
from fusestore.cache.rule import Rule
from fusestore.capture.engines.protocol import Capabilities, Engine
from fusestore.errors import IncompatibleError, InvalidInputError, did_you_mean

_EngineClass = TypeVar("_EngineClass", bound=type[Engine])


class _Entry(NamedTuple):
    capabilities: Capabilities
    load: Callable[[], type[Engine]]


def _included(module: str, name: str, capabilities: Capabilities) -> _Entry:
    def load() -> type[Engine]:
        engine: type[Engine] = getattr(import_module(f"{__package__}.{module}"), name)
        return engine

    return _Entry(capabilities, load)


_ENGINES = {
    DEFAULT_ENGINE: _included(
        "transformers_engine",
        "TransformersEngine",
        Capabilities(whole_rows=True, wanted_rows_only=True, local_weights=True),
    ),
    "llama.cpp": _included(
        "llama_cpp_engine",
        "LlamaCppEngine",
        Capabilities(whole_rows=True, wanted_rows_only=True, local_weights=True, gguf=True),
    ),
    "vllm": _included("vllm", "VllmEngine", Capabilities()),
    "vllm-offline": _included("vllm_engine", "VllmOfflineEngine", Capabilities(local_weights=True)),
    "tensorrt-llm": _included(
        "tensorrt_llm_engine", "TensorRTLLMEngine", Capabilities(local_weights=True)
    ),
    "sglang": _included("sglang", "SglangEngine", Capabilities()),
}


def register_engine(name: str) -> Callable[[_EngineClass], _EngineClass]:
    """Register a class of engines under a name, for the setting `engine`.

    Args:
        name: a cache records it, so it never changes its meaning.

    Raises:
        InvalidInputError: the name is taken.
    """
    if name in _ENGINES:
        raise InvalidInputError(f"An engine is named {name!r} already; choose another name.")

    def add(engine: _EngineClass) -> _EngineClass:
        plugins.record(engine)
        _ENGINES[name] = _Entry(engine.capabilities, lambda: engine)
        return engine

    return add


def engine_names() -> list[str]:
    """All names, sorted."""
    return sorted(_ENGINES)


def engine_capabilities(name: str) -> Capabilities:
    """What the engine of this name can do.

    Raises:
        InvalidInputError: there is none; the nearest names are suggested.
    """
    return _entry(name).capabilities


def engine_class(name: str) -> type[Engine]:
    """The engine of this name; imports it.

    Raises:
        InvalidInputError: there is none.
    """
    return _entry(name).load()


def check_engine(name: str, rule: Rule) -> None:
    """Check that an engine can give the rows that a rule selects.

    Raises:
        InvalidInputError: there is no such engine, or it gives fewer entries.
        IncompatibleError: it cannot give such rows at all.
    """
    capabilities = engine_capabilities(name)
    if not capabilities.exact_label:
        raise IncompatibleError(
            f"Engine {name} does not give the exact log-probability of the next token where that "
            "is not among the entries, and every cache keeps it. Use another engine."
        )
    if not capabilities.temperature_free:
        raise IncompatibleError(
            f"Engine {name} gives log-probabilities at a temperature, or after a sampling filter. "
            "A cache keeps those of the model's own softmax. Use another engine."
        )
    if rule.name == "sampled" and not capabilities.whole_rows:
        raise IncompatibleError(
            f"Engine {name} gives the most likely entries of a row, and selection sampled draws "
            f"from whole rows. Use selection top-k or top-p, or engine {DEFAULT_ENGINE}."
        )
    if rule.name == "top-p" and not capabilities.known_tail:
        raise IncompatibleError(
            f"Engine {name} does not give the mass outside the entries, which selection top-p "
            "needs. Use selection top-k."
        )
    largest = capabilities.max_top_k
    if largest is not None and rule.top_k > largest:
        raise InvalidInputError(
            f"top_k is {rule.top_k}, but engine {name} gives at most {largest} entries of a row. "
            f"Choose at most {largest}."
        )


def _entry(name: str) -> _Entry:
    problems = [] if name in _ENGINES else plugins.load_expected_plugins()
    if name not in _ENGINES:
        raise InvalidInputError(
            f"No engine is named {name!r}. {did_you_mean(name, engine_names())} Engines are: "
            f"{', '.join(engine_names())}. Register your own with fusestore.register_engine in a "
            f"module, and name the module with --plugin. {' '.join(problems)}".rstrip()
        )
    return _ENGINES[name]
