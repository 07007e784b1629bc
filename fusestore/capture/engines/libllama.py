"""libllama, the C library of llama.cpp, by ctypes: a GGUF file's logits, tokens and spellings.

The package xllamacpp has the library and exports its C interface (`llama.h`), but has no Python
function that gives the logits of a prompt. See docs/decisions/0051-libllama.md.

Structures of parameters are passed by value and grow from version to version. So each is a block
larger than any version's, which the library fills with its defaults. Only the first four fields of
a context are set, which have always been these, and what the library made of them is checked.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
from collections import deque
from collections.abc import Iterator
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_uint32, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.errors import EngineError, InvalidInputError, MissingDependencyError

_MULTIPLE, _MIN_BATCH = 32, 64
"""Tokens of a batch are a multiple of the first, and at least the second. Kernels for quantized
weights round otherwise for smaller batches (up to 32 tokens with Q4_1) and for the last rows of a
batch of another size (Q4_K), which moves rows by up to a nat. A row must not depend on how many
follow it."""

_MAX_BATCH = 512
_LOGITS_BYTES = 2**28
"""Largest size of the logits of a batch."""

_ERROR_LEVEL, _CONTINUED = 4, 5
_CONTEXT_DEFAULTS = (512, 2048, 512, 1)

_Ids = npt.NDArray[np.int32]


class _Block(ctypes.Structure):
    """Parameters of a model or a context of any version; the largest has 184 bytes today."""

    _fields_ = (("words", c_uint32 * 256),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


_LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llama_log_set": (None, _LOG_CALLBACK, c_void_p),
    "llama_backend_init": (None,),
    "llama_model_default_params": (_Block,),
    "llama_model_load_from_file": (c_void_p, c_char_p, _Block),
    "llama_model_free": (None, c_void_p),
    "llama_model_get_vocab": (c_void_p, c_void_p),
    "llama_vocab_n_tokens": (c_int32, c_void_p),
    "llama_context_default_params": (_Block,),
    "llama_init_from_model": (c_void_p, c_void_p, _Block),
    "llama_free": (None, c_void_p),
    "llama_n_ctx": (c_uint32, c_void_p),
    "llama_n_batch": (c_uint32, c_void_p),
    "llama_n_seq_max": (c_uint32, c_void_p),
    "llama_set_n_threads": (None, c_void_p, c_int32, c_int32),
    "llama_get_memory": (c_void_p, c_void_p),
    "llama_memory_clear": (None, c_void_p, c_bool),
    "llama_decode": (c_int32, c_void_p, _Batch),
    "llama_get_logits": (POINTER(c_float), c_void_p),
    "llama_tokenize": (
        *(c_int32, c_void_p, c_char_p, c_int32),
        *(c_void_p, c_int32, c_bool, c_bool),
    ),
    "llama_token_to_piece": (c_int32, c_void_p, c_int32, c_char_p, c_int32, c_int32, c_bool),
}
"""By name: the type of the result, and those of the arguments."""


class _Library(NamedTuple):
    functions: Any
    errors: deque[str]
    on_log: Any

    def last_error(self) -> str:
        """What the library logged as errors since the last call."""
        said = "".join(self.errors).strip().replace("\n", "; ")
        self.errors.clear()
        return said or "it does not say why"


def batch_rows(vocab_size: int) -> int:
    """Tokens of a batch, so that its logits have a limited size."""
    rows = min(_MAX_BATCH, _LOGITS_BYTES // (4 * vocab_size))
    return max(_MIN_BATCH, rows - rows % _MULTIPLE)


def _padded(count: int) -> int:
    """How many tokens are computed for a number of them, in the same way for every number."""
    return max(_MIN_BATCH, -(-count // _MULTIPLE) * _MULTIPLE)


def is_installed() -> bool:
    """Whether the package that has the library is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaModel:
    """A GGUF file in memory as it is, with a context for one document at a time."""

    def __init__(self, file: Path, max_length: int, threads: int) -> None:
        """Load it.

        Args:
            file: the file; of a file in parts the first.
            max_length: most tokens of a document.
            threads: threads to compute with.

        Raises:
            MissingDependencyError: the library is not installed, or is of another interface.
            InvalidInputError: the library cannot read the file.
        """
        self._library = _library()
        self._lib = lib = self._library.functions
        self._model = self._context = None
        self._library.errors.clear()
        self._model = lib.llama_model_load_from_file(
            os.fsencode(file), lib.llama_model_default_params()
        )
        if not self._model:
            raise InvalidInputError(
                f"llama.cpp could not load {file}: {self._library.last_error()}. The file may be "
                "damaged, or its architecture newer than the installed xllamacpp: download it "
                "again, or update xllamacpp."
            )
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.vocab_size = int(lib.llama_vocab_n_tokens(self._vocab))
        self.batch_size = batch_rows(self.vocab_size)
        self._context = self._make_context(max_length + _MIN_BATCH, threads)
        self._memory = lib.llama_get_memory(self._context)

    def _make_context(self, length: int, threads: int) -> Any:  # noqa: ANN401 - a pointer
        lib = self._lib
        parameters = lib.llama_context_default_params()
        if tuple(parameters.words[:4]) != _CONTEXT_DEFAULTS:
            raise _other_interface(f"its contexts begin with {list(parameters.words[:4])}")
        wanted = (max(length, self.batch_size), self.batch_size, self.batch_size, 1)
        parameters.words[:4] = wanted
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(
                f"llama.cpp could not make a context of {length:,} tokens: "
                f"{self._library.last_error()}. Free memory, or build the corpus with a smaller "
                "--max-length."
            )
        made = (lib.llama_n_ctx(context), lib.llama_n_batch(context), lib.llama_n_seq_max(context))
        if made[0] < wanted[0] or made[1:] != (self.batch_size, 1):
            raise _other_interface(f"it made a context of {made} for {wanted}")
        lib.llama_set_n_threads(context, threads, threads)
        return context

    def logits(
        self, token_ids: _Ids, wanted: npt.NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """The logits of positions of a document, batch by batch.

        Args:
            token_ids: int32 [n].
            wanted: bool [n], the positions; None for all. The output head runs on no others, but
                for the few that make their number one that is computed in the same way.

        Yields:
            int64 [m], rising positions, and their logits float32 [m, V]: a view of the library's
            memory, which the next batch overwrites.

        Raises:
            EngineError: the library cannot compute them.
        """
        lib = self._lib
        lib.llama_memory_clear(self._memory, True)
        wanted = np.ones(len(token_ids), np.bool_) if wanted is None else wanted
        for start in range(0, len(token_ids), self.batch_size):
            count = min(self.batch_size, len(token_ids) - start)
            # Whatever follows the last token: rows before it have not read it.
            ids = np.zeros(_padded(count), np.int32)
            ids[:count] = token_ids[start : start + count]
            flags = np.zeros(len(ids), np.int8)
            flags[:count] = wanted[start : start + count]
            others = np.flatnonzero(flags == 0)
            flags[others[: _padded(len(ids) - len(others)) - (len(ids) - len(others))]] = 1
            batch = _Batch(
                n_tokens=len(ids), token=ids.ctypes.data, logits=flags.ctypes.data_as(c_void_p)
            )
            status = lib.llama_decode(self._context, batch)
            if status != 0:
                raise EngineError(
                    f"llama.cpp failed with status {status}: {self._library.last_error()}"
                )
            computed = np.flatnonzero(flags)
            rows = np.ctypeslib.as_array(
                lib.llama_get_logits(self._context), (len(computed), self.vocab_size)
            )
            inside = int(np.searchsorted(computed, count))
            yield start + computed[:inside], rows[:inside]

    def tokenize(self, text: bytes) -> _Ids:
        """Int32 [n]: the library's own tokens of a text, without BOS; no special ones in it."""
        ids = np.empty(len(text) + 16, np.int32)
        count = self._lib.llama_tokenize(
            self._vocab, text, len(text), ids.ctypes.data, len(ids), False, False
        )
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(text):,} bytes.")
        return ids[:count]

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for; a special token's are its spelling."""
        buffer = ctypes.create_string_buffer(64)
        arguments = (self._vocab, token_id)
        count = self._lib.llama_token_to_piece(*arguments, buffer, len(buffer), 0, True)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = self._lib.llama_token_to_piece(*arguments, buffer, len(buffer), 0, True)
        return buffer.raw[:count]

    def close(self) -> None:
        """Free the memory; the object cannot be used afterwards."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None


@cache
def _library() -> _Library:
    if not is_installed():
        raise MissingDependencyError(
            "Engine llama.cpp needs the package xllamacpp: pip install 'fusestore[llama]'."
        )
    try:
        module = importlib.import_module("xllamacpp.xllamacpp")
        functions = ctypes.CDLL(str(module.__file__))
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = getattr(functions, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, OSError, AttributeError) as error:
        raise _other_interface(str(error)) from error
    errors: deque[str] = deque(maxlen=8)
    level = 0

    def on_log(message_level: int, text: bytes, _data: Any) -> None:  # noqa: ANN401
        nonlocal level
        level = level if message_level == _CONTINUED else message_level
        if level == _ERROR_LEVEL:
            errors.append(text.decode(errors="replace"))

    # Kept as long as the library, which calls it.
    callback = _LOG_CALLBACK(on_log)
    functions.llama_log_set(callback, None)
    functions.llama_backend_init()
    return _Library(functions, errors, callback)


def _other_interface(problem: str) -> MissingDependencyError:
    version = importlib.metadata.version("xllamacpp")
    return MissingDependencyError(
        f"The library of xllamacpp {version} has another C interface than fusestore knows "
        f"({problem}): pip install 'fusestore[llama]'."
    )
