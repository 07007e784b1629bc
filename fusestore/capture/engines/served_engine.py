"""`ServedEngine`: what all engines over HTTP share: servers, concurrency, retries, checks.

Requests are one document each. Failures of a connection, 429 and 5xx are tried again, on whichever
server is free, until a document has waited for `retry_seconds`. An answer that cannot be right is
asked for a few times more, because a server may have mixed up requests or be restarting, and then
ends the capture. No row is stored that was not checked.
"""

from __future__ import annotations

import random
import threading
import time
from abc import abstractmethod
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, Self

from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.capture.engines.model_server import ModelServer, UnavailableError, shown
from fusestore.capture.engines.protocol import (
    Capabilities,
    Document,
    DocumentRows,
    Engine,
    EngineJob,
)
from fusestore.capture.engines.served_rows import BadAnswerError
from fusestore.errors import EngineError, FusestoreError, InvalidInputError

MAX_BAD_ANSWERS = 4
"""Wrong answers for one document before the capture ends."""

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 20.0
_POLL_SECONDS = 0.2
"""How long the capture waits for answers before it looks whether Ctrl-C was pressed. A signal that
another thread received does not end this one's wait, nor does any on Windows."""

_MAX_LIST_BYTES = 2**22
_BYTES_PER_ENTRY = 512
"""Most bytes of one entry in JSON, with the text of its token."""

_BYTES_PER_ANSWER = 2**20


class ServedModel(NamedTuple):
    """What a server says of its model.

    Attributes:
        name: its name there.
        max_length: most tokens of a request; None where it does not say.
    """

    name: str
    max_length: int | None


class _Server:
    """A server with what is known of it. Fields change under the engine's lock."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.model: ServedModel | None = None
        self.in_flight = 0
        self.failures = 0
        self.failed_at = 0.0
        self.rests_until = 0.0
        self.num_tokens = self.num_documents = self.num_retries = 0


class ServedEngine(Engine):
    """Takes rows from servers; a subclass says how a protocol asks and answers."""

    capabilities = Capabilities()

    extra_tokens: int
    """Tokens of a request beyond those of the document, for the row after its last token."""

    def __init__(self, job: EngineJob) -> None:
        """Use `start`."""
        settings = job.settings
        if not settings.server:
            raise InvalidInputError(
                f"Engine {settings.engine} needs the URL of a server: --server http://HOST:PORT, "
                "once for each server."
            )
        self.job = job
        self._per_server = settings.requests_per_server
        self._retry_seconds = settings.retry_seconds
        self._servers = [
            _Server(ModelServer(url, self._per_server, settings.request_timeout))
            for url in dict.fromkeys(settings.server)
        ]
        self._change = threading.Condition()
        self._closed = False
        self._pool = ThreadPoolExecutor(
            len(self._servers) * self._per_server, thread_name_prefix="request"
        )
        self._began = time.monotonic()

    @classmethod
    def start(cls, job: EngineJob) -> Self:
        """Ask every server for its model.

        Raises:
            InvalidInputError: no server is named, or a URL is none.
            EngineError: a server does not answer in time, has another model, or reads too few
                tokens.
        """
        engine = cls(job)
        try:
            for server in engine._servers:
                engine._greet_patiently(server)
        except BaseException:
            engine.close()
            raise
        return engine

    @abstractmethod
    def request(self, token_ids: Sequence[int], model: str, top_k: int) -> tuple[str, Any]:
        """The path and the content of the request for a document's rows."""

    @abstractmethod
    def read(self, answer: Any, token_ids: Sequence[int], top_k: int) -> Rows:  # noqa: ANN401
        """The rows in a parsed answer, one for each token.

        Raises:
            BadAnswerError: the answer is not what was asked for. The message begins in lower case
                and has no full stop: server, document and advice surround it.
        """

    def run(self, documents: Sequence[Document], rule: Rule) -> Generator[DocumentRows, None, None]:
        """See `Engine.run`: whole documents, in the order in which answers arrive."""
        stopped = threading.Event()
        waiting = iter(documents)
        pending: set[Future[DocumentRows]] = set()
        try:
            while True:
                # Twice as many as are in flight, so that no server waits for this loop.
                while len(pending) < 2 * len(self._servers) * self._per_server:
                    document = next(waiting, None)
                    if document is None:
                        break
                    pending.add(self._pool.submit(self._rows, document, rule.top_k, stopped))
                if not pending:
                    return
                done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            stopped.set()
            with self._change:
                self._change.notify_all()
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """End the requests that still wait for an answer, and report what each server did."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for server in self._servers:
            server.server.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        seconds = max(time.monotonic() - self._began, 1e-9)
        for server in self._servers:
            if server.num_documents:
                self.job.reporter.line(
                    f"{self.job.name}: {server.server.url}: {server.num_documents:,} documents, "
                    f"{server.num_tokens / seconds:,.0f} tokens/s, {server.num_retries:,} retries"
                )

    def _rows(self, document: Document, top_k: int, stopped: threading.Event) -> DocumentRows:
        """The rows of a document, however many tries that takes."""
        token_ids = document.token_ids.tolist()
        where = f"document {document.index} ({len(token_ids):,} tokens)"
        limit = _BYTES_PER_ANSWER + _BYTES_PER_ENTRY * (len(token_ids) + 1) * (top_k + 2)
        failing_since: float | None = None
        bad_answers = 0
        while True:
            server = self._take(stopped)
            began = time.monotonic()
            problem: EngineError | None = None
            try:
                model = server.model or self._greet(server)
                path, content = self.request(token_ids, model.name, top_k)
                answer = server.server.post(path, content, limit)
                rows = self._checked(answer, token_ids, top_k)
            except (UnavailableError, BadAnswerError) as error:
                problem = error
            except EngineError as error:
                raise EngineError(
                    f"{self._named(server)} refuses {where}: {error}. {self._advice(str(error))}"
                ) from error
            finally:
                self._give_back(server, problem, len(token_ids), began)
            if problem is None:
                return DocumentRows(document, 0, rows)
            if isinstance(problem, BadAnswerError):
                bad_answers += 1
                if bad_answers == MAX_BAD_ANSWERS:
                    raise EngineError(
                        f"{self._named(server)} gave wrong rows for {where}, {bad_answers} times: "
                        f"{problem}. Shards that were finished are kept; the same command "
                        "continues when the server is put right."
                    ) from problem
                continue
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since > self._retry_seconds:
                raise EngineError(
                    f"{self._named(server)} did not answer for {where} within "
                    f"{self._retry_seconds:g} s of retries: {problem}. Shards that were finished "
                    "are kept; the same command continues when the server answers."
                ) from problem

    def _checked(self, answer: Any, token_ids: Sequence[int], top_k: int) -> Rows:  # noqa: ANN401
        """The rows of an answer; whatever is wrong with its structure is a bad answer."""
        try:
            return self.read(answer, token_ids, top_k)
        except FusestoreError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BadAnswerError(
                "the answer has another structure than that of this protocol "
                f"({type(error).__name__}: {shown(str(error), 80)})"
            ) from error

    def _take(self, stopped: threading.Event) -> _Server:
        """The free server with the fewest requests; waits while all are busy or at rest."""
        with self._change:
            while not (stopped.is_set() or self._closed):
                now = time.monotonic()
                free = [server for server in self._servers if server.in_flight < self._per_server]
                rested = [server for server in free if server.rests_until <= now]
                if rested:
                    server = min(rested, key=lambda server: server.in_flight)
                    server.in_flight += 1
                    return server
                until = min((server.rests_until for server in free), default=now + 1.0)
                self._change.wait(max(until - now, 0.001))
        raise EngineError("The capture was stopped.")

    def _give_back(
        self, server: _Server, problem: EngineError | None, num_tokens: int, began: float
    ) -> None:
        now = time.monotonic()
        with self._change:
            server.in_flight -= 1
            if problem is None:
                server.failures = 0
                server.num_documents += 1
                server.num_tokens += num_tokens
            else:
                server.num_retries += 1
            if isinstance(problem, UnavailableError):
                # One outage ends all requests of its time: it is one failure, however many.
                if began >= server.failed_at:
                    server.failures += 1
                    server.failed_at = now
                rest = _wait(server.failures, problem.retry_after)
                server.rests_until = max(server.rests_until, now + rest)
                if problem.restarted:
                    # Another process, with another model, may answer next.
                    server.model = None
            self._change.notify_all()

    def _greet_patiently(self, server: _Server) -> None:
        began, tries = time.monotonic(), 0
        while True:
            try:
                self._greet(server)
            except (UnavailableError, BadAnswerError) as error:
                tries += 1
                if time.monotonic() - began > self._retry_seconds:
                    raise EngineError(
                        f"{self._named(server)} gives no list of its models: {error}. Start the "
                        "server, or correct --server."
                    ) from error
                time.sleep(_wait(tries, None))
            else:
                return

    def _greet(self, server: _Server) -> ServedModel:
        """Ask a server for its model, and check it."""
        listed = server.server.get("/v1/models", _MAX_LIST_BYTES)
        model = _choose(listed, self.job.settings.served_model, self._named(server))
        needed = self.job.max_length + self.extra_tokens
        if model.max_length is not None and model.max_length < needed:
            raise EngineError(
                f"{self._named(server)} reads at most {model.max_length:,} tokens of "
                f"{model.name}, and the longest document needs {needed:,} (with "
                f"{self.extra_tokens} for the row after its last token). Serve it with a longer "
                f"context, or build the corpus with --max-length "
                f"{model.max_length - self.extra_tokens}."
            )
        server.model = model
        return model

    def _named(self, server: _Server) -> str:
        return f"The server {server.server.url} of {self.job.name}"

    def _advice(self, problem: str) -> str:
        """What to do about a request that was refused."""
        del problem
        return f"Check that it is a server of {self.job.settings.engine}."


def _wait(failures: int, retry_after: float | None) -> float:
    """Seconds until the next try: twice as long after each failure, and never all at once."""
    if retry_after is not None:
        return retry_after
    longest: float = min(_FIRST_WAIT * 2.0 ** min(failures - 1, 20), _LONGEST_WAIT)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _choose(listed: Any, wanted: str | None, server: str) -> ServedModel:  # noqa: ANN401
    """The model to ask for, from the parsed list of a server's models."""
    entries = listed.get("data") if isinstance(listed, dict) else None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), str) for entry in entries
    ):
        raise BadAnswerError("its list of models (/v1/models) is not OpenAI's")
    lengths = {entry["id"]: entry.get("max_model_len") for entry in entries}
    names = ", ".join(shown(name, 80) for name in list(lengths)[:10])
    if wanted is None and len(lengths) != 1:
        raise EngineError(
            f"{server} serves {len(lengths)} models: {names}. Name one with --served-model."
        )
    name = next(iter(lengths)) if wanted is None else wanted
    if name not in lengths:
        raise EngineError(f"{server} does not serve {name!r}. It serves: {names}.")
    length = lengths[name]
    return ServedModel(name, length if type(length) is int and length > 0 else None)
