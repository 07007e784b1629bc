"""Faults of servers: what goes wrong with a connection, and what is wrong in an answer.

Each was seen in a server, or is what its protocol lets happen. `applied` changes what is answered;
`ProtocolServer` itself does what happens to the connection.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

TRANSPORT_FAULTS = ("reset", "restart", "429", "500", "503", "truncated", "cut JSON")
"""Another try succeeds. `hang` is one more, which waits for the client's timeout."""

CONTENT_FAULTS = (
    "hang",
    "bos added",
    "chat template",
    "other request",
    "other ids",
    "short rows",
    "no rows",
    "no echo",
    "first row",
    "fewer entries",
    "more entries",
    "logits",
    "too much mass",
    "NaN",
    "text for number",
    "outside ids",
    "duplicate ids",
    "huge",
    "deep",
    "no JSON",
    "list",
)
"""What is answered with 200 and cannot be right; and `hang`."""

SILENT_FAULTS = ("silent BOS", "silent template", "wrong temperature", "other rows")
"""Answers that look right, and have the rows of other tokens or of another temperature."""

TEMPLATE_IDS = (1, 2, 3)
"""What the fault `chat template` puts before a prompt."""

_HUGE_BYTES = 2**26

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Request:
    """What is answered.

    Attributes:
        prompt: the tokens.
        logprobs: float32 [n, V] the row after each of them.
        k: entries asked for.
        change: changes the answer's content before it is sent; it may return bytes.
    """

    prompt: list[int]
    logprobs: _Floats
    k: int
    change: Callable[[Any], Any] | None = None


def applied(
    fault: str | None,
    request: Request,
    earlier: Request | None,
    rows: Callable[[Sequence[int]], _Floats],
    bos_id: int,
) -> Request:
    """The request as a server with this fault answers it.

    Args:
        fault: of `CONTENT_FAULTS` or `SILENT_FAULTS`; others change nothing here.
        request: without it.
        earlier: the request before this one.
        rows: gives the rows of other tokens.
        bos_id: what `bos added` adds.
    """
    if fault in ("bos added", "chat template"):
        before = [bos_id] if fault == "bos added" else list(TEMPLATE_IDS)
        prompt = [*before, *request.prompt]
        return replace(request, prompt=prompt, logprobs=rows(prompt))
    if fault in ("silent BOS", "silent template"):
        before = [bos_id] if fault == "silent BOS" else list(TEMPLATE_IDS)
        return replace(request, logprobs=rows([*before, *request.prompt])[len(before) :])
    if fault == "other rows":
        others = earlier.prompt if earlier is not None else request.prompt[::-1]
        other = np.resize(rows(others), request.logprobs.shape)
        return replace(request, logprobs=np.roll(other, 1, axis=0))
    if fault == "wrong temperature":
        scaled = request.logprobs.astype(np.float64) / 2
        scaled -= np.logaddexp.reduce(scaled, axis=1, keepdims=True)
        return replace(request, logprobs=scaled.astype(np.float32))
    if fault == "logits":
        return replace(request, logprobs=request.logprobs + 30)
    if fault == "too much mass":
        return replace(request, logprobs=np.minimum(request.logprobs * 0.3, 0))
    if fault == "fewer entries":
        return replace(request, k=max(1, request.k // 2))
    if fault == "more entries":
        return replace(request, k=request.k + 3)
    changes: dict[str | None, Callable[[Any], Any]] = {
        "other request": _with_shifted_rows,
        "other ids": lambda content: _with_echo(content, [5, *request.prompt[1:]]),
        "short rows": lambda content: _rows(content, lambda rows: [rows[0], *rows[3:]]),
        "no rows": lambda content: _without(content, "prompt_logprobs", "input_token_logprobs"),
        "no echo": lambda content: _with_echo(content, None),
        "first row": _with_first_row,
        "NaN": lambda content: _first_value(content, float("nan")),
        "text for number": lambda content: _first_value(content, "-0.5"),
        "outside ids": lambda content: _first_id(content, 2**30),
        "duplicate ids": lambda content: _first_id(content, None),
        "huge": lambda _: b" " * _HUGE_BYTES + b"{}",
        "deep": lambda _: b"[" * 200_000,
        "no JSON": lambda _: b"<html>proxy</html>",
        "list": lambda _: b"[]",
    }
    return replace(request, change=changes.get(fault))


def _place(content: Any) -> Any:  # noqa: ANN401 - JSON
    """The part of an answer that has the rows."""
    return content["choices"][0] if "choices" in content else content["meta_info"]


def _without(content: Any, *keys: str) -> Any:  # noqa: ANN401 - JSON
    for key in keys:
        _place(content).pop(key, None)
    return content


def _with_echo(content: Any, ids: list[int] | None) -> Any:  # noqa: ANN401 - JSON
    place = _place(content)
    if "prompt_token_ids" in place:
        place["prompt_token_ids"] = ids
    elif ids is None:
        place["input_token_logprobs"] = None
    else:
        for entry, token in zip(place["input_token_logprobs"], ids, strict=True):
            entry[1] = token
    return content


def _rows(content: Any, change: Callable[[list[Any]], list[Any]]) -> Any:  # noqa: ANN401 - JSON
    place = _place(content)
    key = "prompt_logprobs" if "prompt_logprobs" in place else "input_token_logprobs"
    place[key] = change(place[key])
    return content


def _with_shifted_rows(content: Any) -> Any:  # noqa: ANN401 - JSON
    """Entries of other rows, as when two requests are mixed up."""
    place = _place(content)
    for key in ("prompt_logprobs", "input_top_logprobs"):
        if key in place:
            first, *rows = place[key]
            place[key] = [first, *rows[1:], *rows[:1]]
    for key in ("input_top_logprobs_val_flat", "input_top_logprobs_idx_flat"):
        k = place.get("input_top_logprobs_shape", [0, 0])[1]
        if key in place:
            place[key] = [*place[key][k:], *place[key][:k]]
        if f"{key}_b64" in place:
            data = base64.b64decode(place[f"{key}_b64"])
            rolled = data[4 * k :] + data[: 4 * k]
            place[f"{key}_b64"] = base64.b64encode(rolled).decode()
    return content


def _with_first_row(content: Any) -> Any:  # noqa: ANN401 - JSON
    place = _place(content)
    if "prompt_logprobs" in place:
        place["prompt_logprobs"][0] = place["prompt_logprobs"][1]
    else:
        place["input_token_logprobs"][0][0] = -1.0
    return content


def _first_value(content: Any, value: Any) -> Any:  # noqa: ANN401 - JSON
    place = _place(content)
    if "prompt_logprobs" in place:
        next(iter(place["prompt_logprobs"][1].values()))["logprob"] = value
    else:
        place["input_token_logprobs"][1][0] = value
    return content


def _first_id(content: Any, token: int | None) -> Any:  # noqa: ANN401 - JSON
    """Give the first entry of the first row this id, or that of the second entry."""
    place = _place(content)
    if "prompt_logprobs" in place:
        row = place["prompt_logprobs"][1]
        own, second, *_ = row
        name = f"0{second}" if token is None else str(token)
        place["prompt_logprobs"][1] = {name if key == own else key: row[key] for key in row}
    elif "input_top_logprobs" in place:
        first = place["input_top_logprobs"][1]
        first[0][1] = first[1][1] if token is None else token
    else:
        for key in [key for key in place if key.startswith("input_top_logprobs")]:
            del place[key]
        place["input_top_logprobs"] = None
    return content
