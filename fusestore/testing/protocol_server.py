"""`ProtocolServer`: vLLM's and SGLang's HTTP interfaces for prompt log-probabilities.

It is a real server on the loopback, with real rows of a model, and does what the servers do where
their protocols are odd: the first element is null, a row has the token's own entry first and the k
most likely after it, ids are keys in strings, −inf is −9999, ties come in any order, flat arrays
fall back to lists. `docs/engines.md` says what was read in which version. Faults are injected into
the next requests, in an order that is given or drawn.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from fusestore.testing.faults import (
    CONTENT_FAULTS,
    SILENT_FAULTS,
    TRANSPORT_FAULTS,
    Request,
    applied,
)

RowFunction = Callable[[Sequence[int]], npt.NDArray[np.float32]]
"""Token ids [n] to natural log-probabilities [n, V] of the token after each."""

SglangForm = Literal["nested", "flat", "base64"]

_HANG_SECONDS = 60.0


def transformers_rows(model: Any) -> RowFunction:  # noqa: ANN401 - transformers is untyped
    """The rows of a causal language model of transformers, in float32."""
    import torch

    def rows(token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([list(token_ids)])).logits[0]
            logprobs: npt.NDArray[np.float32] = logits.float().log_softmax(-1).numpy()
        return logprobs

    return rows


class ProtocolServer:
    """A context manager; the server runs inside the context.

    Attributes:
        url: where it listens.
        num_requests: requests for rows so far.
        happened: how often each fault happened.
        paths: paths that were asked for, in order.
    """

    def __init__(
        self,
        rows: RowFunction,
        *,
        model: str = "served",
        max_model_len: int = 4096,
        max_logprobs: int = 20,
        sglang_form: SglangForm = "base64",
        key: str | None = None,
        fault_rate: float = 0.0,
        faults: Sequence[str] = TRANSPORT_FAULTS,
        seed: int = 0,
        bos_id: int = 0,
    ) -> None:
        """Nothing listens yet.

        Args:
            rows: gives the rows of any tokens; called by one thread at a time.
            model: its name in `/v1/models`.
            max_model_len: most tokens of a request, generated ones included.
            max_logprobs: vLLM's cap of `prompt_logprobs`.
            sglang_form: in which SGLang gives `input_top_logprobs` to who asks for flat ones.
            key: asked for as `Authorization: Bearer`; None for no key.
            fault_rate: share of requests with a fault.
            faults: are drawn from.
            seed: of the draws.
            bos_id: what the fault `bos added` adds.
        """
        self.model, self.max_model_len, self.max_logprobs = model, max_model_len, max_logprobs
        self.sglang_form, self.key = sglang_form, key
        self.fault_rate, self.faults, self.bos_id = fault_rate, tuple(faults), bos_id
        self.num_requests = 0
        self.happened: Counter[str] = Counter()
        self.paths: list[str] = []
        self._planned: deque[str | None] = deque()
        self._rows = rows
        self._made: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
        self._last: Request | None = None
        self._choice = random.Random(seed)  # noqa: S311 - repeatable
        self._lock = threading.Lock()
        self._row_lock = threading.Lock()
        self._down_until = 0.0
        self.ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()

    def plan(self, *faults: str | None) -> None:
        """What happens to the next requests for rows, in order; None is nothing.

        Raises:
            ValueError: there is no such fault.
        """
        unknown = set(faults) - {None, *TRANSPORT_FAULTS, *CONTENT_FAULTS, *SILENT_FAULTS}
        if unknown:
            raise ValueError(f"there is no fault {sorted(map(str, unknown))[0]!r}")
        self._planned.extend(faults)

    def next_fault(self) -> str | None:
        """The fault of a request for rows, which is counted."""
        with self._lock:
            self.num_requests += 1
            fault: str | None = None
            if self._planned:
                fault = self._planned.popleft()
            elif self._choice.random() < self.fault_rate:
                fault = self._choice.choice(self.faults)
            if fault is not None:
                self.happened[fault] += 1
            return fault

    def is_down(self) -> bool:
        """Whether the server is restarting."""
        return time.monotonic() < self._down_until

    def restart(self, seconds: float = 0.3) -> None:
        """Reset every connection until then, as a process that starts again does."""
        self._down_until = time.monotonic() + seconds

    def logprobs(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """The rows [n, V] of these tokens."""
        with self._row_lock:
            key = tuple(token_ids)
            if key not in self._made:
                self._made[key] = self._rows(token_ids)
            return self._made[key]

    def answer(self, path: str, body: Mapping[str, Any], fault: str | None) -> tuple[int, Any]:
        """Status and content of the answer to a request for rows."""
        problem = self._problem(path, body)
        if problem is not None:
            return 400, {"error": {"message": problem, "type": "BadRequestError", "code": 400}}
        vllm = path == "/v1/completions"
        prompt = body["prompt"] if vllm else body["input_ids"]
        k = body["prompt_logprobs"] if vllm else body["top_logprobs_num"]
        request = Request(list(prompt), self.logprobs(prompt), k)
        with self._lock:
            earlier, self._last = self._last, request
        request = applied(fault, request, earlier, self.logprobs, self.bos_id)
        content = _vllm(request, self.model) if vllm else _sglang(request, self._form(body))
        return 200, content if request.change is None else request.change(content)

    def _form(self, body: Mapping[str, Any]) -> SglangForm:
        return self.sglang_form if body.get("return_flat_raw_top_logprobs") else "nested"

    def _problem(self, path: str, body: Mapping[str, Any]) -> str | None:
        prompt = body.get("prompt" if path == "/v1/completions" else "input_ids")
        if not isinstance(prompt, list) or not prompt or not set(map(type, prompt)) <= {int}:
            return "this server takes token ids"
        if path == "/generate":
            return None if len(prompt) < self.max_model_len + 1 else "The input is too long."
        if body.get("model") != self.model:
            return f"The model `{body.get('model')}` does not exist."
        if body.get("stream"):
            return "`prompt_logprobs` are not available when `stream=True`."
        if body.get("prompt_logprobs", 0) > self.max_logprobs:
            return (
                f"Requested prompt logprobs of {body['prompt_logprobs']}, which is greater than "
                f"max allowed: {self.max_logprobs}"
            )
        if len(prompt) + body.get("max_tokens", 16) > self.max_model_len:
            return f"This model's maximum context length is {self.max_model_len} tokens."
        return None


def _entries(request: Request, row: int) -> list[tuple[int, float]]:
    """Ids and log-probabilities of the k most likely; of ties, the higher id first."""
    logprobs = request.logprobs[row]
    order = np.lexsort((-np.arange(len(logprobs)), -logprobs))[: request.k]
    return [(int(token), float(logprobs[token])) for token in order]


def _finite(logprob: float) -> float:
    return max(logprob, -9999.0)


def _vllm(request: Request, model: str) -> dict[str, Any]:
    elements: list[dict[str, Any] | None] = [None]
    for row, token in enumerate(request.prompt[1:]):
        own = float(request.logprobs[row][token])
        rank = int((request.logprobs[row] >= own).sum())
        # The own token is first; a dictionary merges it with its second appearance.
        element = {str(token): {"logprob": _finite(own), "rank": rank, "decoded_token": "…"}}
        for position, (other, logprob) in enumerate(_entries(request, row)):
            element.setdefault(
                str(other),
                {"logprob": _finite(logprob), "rank": position + 1, "decoded_token": "…"},
            )
        elements.append(element)
    return {
        "id": "cmpl-0",
        "object": "text_completion",
        "model": model,
        "choices": [
            {
                "index": 0,
                "text": "…",
                "logprobs": None,
                "finish_reason": "length",
                "prompt_logprobs": elements,
                "prompt_token_ids": request.prompt,
                "token_ids": [0],
            }
        ],
        "usage": {"prompt_tokens": len(request.prompt), "completion_tokens": 1},
    }


def _sglang(request: Request, form: SglangForm) -> dict[str, Any]:
    own: list[list[Any]] = [[None, request.prompt[0], None]]
    own += [
        [float(request.logprobs[row][token]), token, None]
        for row, token in enumerate(request.prompt[1:])
    ]
    rows = [_entries(request, row) for row in range(len(request.prompt) - 1)]
    meta: dict[str, Any] = {"id": "0", "prompt_tokens": len(request.prompt)}
    meta["input_token_logprobs"] = own
    if form == "nested":
        nested = [[[logprob, token, None] for token, logprob in row] for row in rows]
        meta["input_top_logprobs"] = [None, *nested]
    else:
        values = [logprob for row in rows for _, logprob in row]
        ids = [token for row in rows for token, _ in row]
        meta["input_top_logprobs_shape"] = [len(rows), len(rows[0]) if rows else request.k]
        meta["input_top_logprobs_null_prefix"] = 1
        if form == "flat":
            meta |= {"input_top_logprobs_val_flat": values, "input_top_logprobs_idx_flat": ids}
        else:
            meta["input_top_logprobs_val_flat_b64"] = _base64(values, "<f4")
            meta["input_top_logprobs_idx_flat_b64"] = _base64(ids, "<i4")
    return {"text": "", "output_ids": [], "meta_info": meta}


def _base64(values: Sequence[float], dtype: str) -> str:
    return base64.b64encode(np.array(values, dtype).tobytes()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise a small answer waits 40 ms for the receipt of its header.
    disable_nagle_algorithm = True

    def __init__(self, owner: ProtocolServer, *arguments: Any) -> None:  # noqa: ANN401
        self._owner = owner
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def handle(self) -> None:
        # The client may be gone.
        with contextlib.suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        owner = self._owner
        owner.paths.append(self.path)
        if owner.is_down():
            return self._reset()
        if not self._is_allowed():
            return self._send(401, {"error": {"message": "Unauthorized"}})
        if self.path != "/v1/models":
            return self._send(404, {"detail": "Not Found"})
        card = {"id": owner.model, "object": "model", "max_model_len": owner.max_model_len}
        return self._send(200, {"object": "list", "data": [card]})

    def do_POST(self) -> None:
        owner = self._owner
        owner.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if owner.is_down():
            return self._reset()
        if not self._is_allowed():
            return self._send(401, {"error": {"message": "Unauthorized"}})
        if self.path not in ("/v1/completions", "/generate"):
            return self._send(404, {"detail": "Not Found"})
        fault = owner.next_fault()
        if fault == "restart":
            owner.restart()
        if fault in ("reset", "restart"):
            return self._reset()
        if fault == "hang":
            owner.ended.wait(_HANG_SECONDS)
            return self._reset()
        if fault in ("429", "500", "503"):
            after = {"Retry-After": "0"} if fault == "429" else {}
            return self._send(int(fault), {"error": {"message": "on purpose"}}, after)
        status, content = owner.answer(self.path, json.loads(body), fault)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if fault == "truncated":
            self._send(status, data, cut=len(data) // 2)
            return self._reset()
        if fault == "cut JSON":
            data = data[: len(data) // 2]
        return self._send(status, data)

    def _is_allowed(self) -> bool:
        key = self._owner.key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def _send(
        self,
        status: int,
        content: Any,  # noqa: ANN401 - JSON or bytes
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[:cut])

    def _reset(self) -> None:
        """Close with data unsent: the client sees a reset rather than an end."""
        self.close_connection = True
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.shutdown(socket.SHUT_RDWR)
