"""Captures from servers over HTTP: their rows are those of transformers, or they are refused."""

import signal
import time

import numpy as np
import pytest

from fusestore.cache.reader import open_cache
from fusestore.cache.verify import verify_cache
from fusestore.capture.engines import served_engine
from fusestore.capture.engines.engine_registry import engine_class
from fusestore.capture.engines.protocol import Document, EngineJob
from fusestore.capture.estimate import estimate_capture
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import (
    EngineError,
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
)
from fusestore.models.model import Model
from fusestore.progress import SilentReporter, ignore_progress
from fusestore.store.layout import Store
from fusestore.testing import CONTENT_FAULTS, TRANSPORT_FAULTS, ProtocolServer, transformers_rows
from fusestore.tokenizers.token_table import TokenTable
from fusestore.workflows.repair import repair_store
from tests.helpers.command import start
from tests.helpers.engine_job import TOP_K, VOCAB_SIZE, check_same, make_job

FORMS = [("vllm", "nested"), ("sglang", "nested"), ("sglang", "flat"), ("sglang", "base64")]
ENGINES = ["vllm", "sglang"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(served_engine, "_FIRST_WAIT", 0.01)


@pytest.fixture
def names(request):
    """A name for a cache of this test."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture(scope="module")
def rows(job):
    """The model's rows, remembered: every server has the same."""
    made, compute = {}, transformers_rows(job.model)

    def remembered(token_ids):
        key = tuple(token_ids)
        if key not in made:
            made[key] = compute(token_ids)
        return made[key]

    return remembered


class Lines(SilentReporter):
    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)


def start_engine(job, settings):
    return engine_class(settings.engine).start(
        EngineJob(
            name="teacher",
            model=Model.open(str(job.folder)),
            settings=settings,
            vocab_size=VOCAB_SIZE,
            max_length=64,
            dtype=None,
            read_tokens=lambda: job.tokens,
            reporter=SilentReporter(),
        )
    )


def served(server, engine, **changes):
    return {
        "engine": engine,
        "server": (server.url,),
        "retry_seconds": 30,
        "audit": "off",
        **changes,
    }


@pytest.mark.parametrize(("engine", "form"), FORMS)
def test_rows_are_those_of_transformers(job, rows, names, engine, form):
    with ProtocolServer(rows, sglang_form=form) as server:
        cache = job.capture(names, **served(server, engine))
        check_same(job.expected, cache[:])
        assert verify_cache(cache.location) == []
        assert cache.fingerprint.engine == engine
        assert cache.fingerprint.dtype is None
        requests = server.num_requests
        assert requests >= cache.fingerprint.num_documents
    # A complete cache needs no server.
    again = job.capture(names, **served(server, engine))
    assert again.digest == cache.digest


@pytest.mark.parametrize("engine", ENGINES)
def test_a_nucleus_is_cut_from_the_entries(job, rows, names, engine):
    expected = job.capture(f"{names}-own", dtype="float32", selection="top-p", top_p=0.6)
    with ProtocolServer(rows) as server:
        cache = job.capture(names, **served(server, engine, selection="top-p", top_p=0.6))
    check_same(expected[:], cache[:])


@pytest.mark.parametrize("engine", ENGINES)
def test_connections_that_fail_change_nothing(job, rows, names, engine):
    with ProtocolServer(rows) as server:
        server.plan(*TRANSPORT_FAULTS)
        cache = job.capture(names, **served(server, engine))
    check_same(job.expected, cache[:])
    assert server.happened == dict.fromkeys(TRANSPORT_FAULTS, 1)


def test_several_servers_share_the_documents(job, rows, names):
    """While a third of all requests fail in some way; a line tells what each did."""
    reporter = Lines()
    with (
        ProtocolServer(rows, fault_rate=0.3, seed=1) as one,
        ProtocolServer(rows, fault_rate=0.3, seed=2) as two,
    ):
        both = served(one, "vllm", requests_per_server=2) | {"server": (one.url, two.url)}
        cache = job.capture(names, reporter=reporter, **both)
    check_same(job.expected, cache[:])
    for server in (one, two):
        assert any(server.url in line for line in reporter.lines)


@pytest.mark.parametrize("fault", [fault for fault in CONTENT_FAULTS if fault != "hang"])
@pytest.mark.parametrize(("engine", "form"), FORMS)
def test_a_wrong_answer_is_never_returned(job, rows, engine, form, fault):
    """It is asked for again, and ends the run where it stays wrong."""
    if form in ("flat", "base64") and fault in ("outside ids", "duplicate ids"):
        pytest.skip("is made for lists")
    with ProtocolServer(rows, sglang_form=form) as server:
        settings = job.settings(**served(server, engine, requests_per_server=1))
        with start_engine(job, settings) as running:
            capturer = RowCapturer(running, job.tokens, settings.rule)
            server.plan(fault)
            made, _ = capturer.rows(0, 64, ignore_progress)
            assert server.happened == {fault: 1}
            check_same(job.expected_rows(0, 64), made)
            server.fault_rate, server.faults = 1.0, (fault,)
            with pytest.raises(EngineError, match=rf"{server.url}.*document \d.*command continues"):
                capturer.rows(0, 64, ignore_progress)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_command_continues_when_the_server_is_put_right(job, rows, names, engine):
    with ProtocolServer(rows) as server:
        server.plan(*[None] * 12)
        server.fault_rate, server.faults = 1.0, ("short rows",)
        with pytest.raises(EngineError, match=names):
            job.capture(names, **served(server, engine))
        assert not (job.store.cache(names) / "manifest.json").exists()
        server.fault_rate = 0.0
        check_same(job.expected, job.capture(names, **served(server, engine))[:])


def test_a_server_that_hangs_is_left_behind(job, rows, names):
    with ProtocolServer(rows) as server:
        server.plan("hang")
        settings = served(server, "vllm", request_timeout=0.5)
        check_same(job.expected, job.capture(names, **settings)[:])
        server.ended.set()
    assert server.happened == {"hang": 1}


def test_ctrl_c_waits_for_no_answer(job, rows, names):
    """The servers hang and have ten minutes to answer; what was finished is kept."""
    with ProtocolServer(rows) as server:
        server.plan(*[None] * 12)
        server.fault_rate, server.faults = 1.0, ("hang",)
        arguments = ["capture", job.folder, "--store", job.store.location.path, "--name", names]
        arguments += ["--corpus", "demo", "--engine", "vllm", "--server", server.url, "-k", TOP_K]
        arguments += ["--profile", "lossless", "--rows-per-shard", 64, "--rows-per-chunk", 16]
        arguments += ["--audit", "off", "--requests-per-server", 2]
        with start(*arguments) as process:
            while not server.happened["hang"]:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            try:
                # Far below both the server's minute and the client's ten.
                assert process.wait(timeout=30) == 1
            finally:
                process.kill()
            said = process.stderr.read()
        assert "Interrupted" in said.splitlines()[-1]
        assert "Traceback" not in said
        server.fault_rate = 0.0
        folder = job.store.cache(names)
        assert not (folder / "manifest.json").exists()
        # Its leases without it are free.
        assert not [path for path in folder.sizes() if path.startswith("leases/writer-")]
        check_same(job.expected, job.capture(names, **served(server, "vllm"))[:])


def test_a_closed_engine_waits_for_nothing(job, rows):
    """Even if whoever took its rows never closed them."""
    with ProtocolServer(rows) as server:
        server.plan(None)
        server.fault_rate, server.faults = 1.0, ("hang",)
        settings = job.settings(**served(server, "vllm", retry_seconds=1e6))
        offsets = job.tokens.document_offsets
        documents = [
            Document(index, int(offsets[index]), job.tokens.document(index)[0])
            for index in range(job.tokens.num_documents)
        ]
        with start_engine(job, settings) as running:
            parts = running.run(documents, settings.rule)
            assert len(next(parts).rows) > 0
            while not server.happened["hang"]:
                time.sleep(0.01)
        # Those under way ended, and none was tried again.
        assert server.num_requests <= len(documents)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_that_stays_away_ends_the_run(job, rows, names, engine):
    with ProtocolServer(rows) as server:
        pass
    with pytest.raises(EngineError, match=f"{server.url}.*Start the server"):
        job.capture(names, **served(server, engine, retry_seconds=0.1))
    assert names not in job.store.names("caches")
    with (
        ProtocolServer(rows, fault_rate=1.0, faults=["503"]) as server,
        pytest.raises(EngineError, match=rf"{server.url}.*document.*within 0\.1 s.*503"),
    ):
        job.capture(names, **served(server, engine, retry_seconds=0.1))


def test_another_model_after_a_restart_is_refused(job, rows, names):
    with ProtocolServer(rows) as server:
        server.plan(None, None, "restart")
        calls = []

        def renamed(token_ids):
            calls.append(token_ids)
            if len(calls) == 2:
                server.model = "other"
            return rows(token_ids)

        server._rows = renamed
        settings = served(server, "sglang", requests_per_server=1, served_model="served")
        with pytest.raises(EngineError, match=r"does not serve 'served'.*other"):
            job.capture(names, **settings)


@pytest.mark.parametrize(
    ("server", "changes", "says"),
    [
        ({"max_logprobs": 5}, {}, "--max-logprobs 7.*smaller --top-k"),
        ({"max_model_len": 20}, {}, "reads at most 20 tokens.*--max-length 18"),
        ({}, {"served_model": "other"}, "does not serve 'other'. It serves: served"),
        ({"key": "secret"}, {}, "401.*FUSESTORE_SERVER_KEY"),
    ],
)
def test_what_a_server_refuses_is_said(job, rows, names, server, changes, says):
    with ProtocolServer(rows, **server) as running, pytest.raises(EngineError, match=says):
        job.capture(names, **served(running, "vllm", **changes))


def test_a_key_is_sent_and_never_shown(job, rows, names, monkeypatch):
    monkeypatch.setenv("FUSESTORE_SERVER_KEY", "secret")
    with ProtocolServer(rows, key="secret") as server:
        job.capture(names, **served(server, "vllm"))
        server.plan(*["no JSON"] * 100)
        with pytest.raises(EngineError) as caught:
            job.capture(f"{names}-2", **served(server, "vllm"))
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="holds a user name") as refused:
        job.capture(names + "-3", engine="vllm", server=("http://me:secret@localhost:1",))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a", "http://", "http://a/?b=c", "http://[x"]
)
def test_what_is_no_url_is_refused(job, names, url):
    with pytest.raises(InvalidInputError, match="no URL of a server"):
        job.capture(names, engine="vllm", server=(url,))


def test_settings_that_have_no_effect_are_refused(job, rows, names):
    with pytest.raises(ValueError, match="no effect with engine transformers"):
        CaptureSettings(server=("http://localhost:1",))
    with pytest.raises(InvalidInputError, match="--server"):
        job.capture(names, engine="vllm")
    with ProtocolServer(rows) as server:
        with pytest.raises(InvalidInputError, match="its server decides"):
            job.capture(names, **served(server, "vllm", dtype="float32"))
        with pytest.raises(IncompatibleError, match="draws from whole rows"):
            job.capture(names, **served(server, "vllm", selection="sampled"))


def test_the_engine_is_of_the_fingerprint_and_the_address_is_not(job, rows, names):
    with ProtocolServer(rows) as server:
        first = job.capture(names, **served(server, "vllm"))
    with ProtocolServer(rows) as server:
        assert job.capture(names, **served(server, "vllm")).digest == first.digest
        with pytest.raises(FingerprintMismatchError, match="engine"):
            job.capture(names, **served(server, "sglang"))


def test_an_estimate_asks_the_server(job, rows):
    with ProtocolServer(rows) as server:
        settings = job.settings(**served(server, "vllm"))
        model = Model.open(str(job.folder))
        estimate = estimate_capture(
            job.store, "estimate", model, job.corpus, settings, sample_tokens=100
        )
        assert server.num_requests > 0
    assert estimate.num_tokens == len(job.expected)
    assert "estimate" not in job.store.names("caches")


def test_a_damaged_shard_is_made_again_by_the_server(job, rows, names):
    with ProtocolServer(rows) as server:
        cache = job.capture(names, **served(server, "vllm"))
        (cache.location / "ids/c/1/0").delete()
        settings = CaptureSettings(**served(server, "vllm"))
        (repair,) = repair_store(
            job.store, f"cache/{names}", models=[str(job.folder)], settings=settings
        ).values()
    assert repair.problem is None
    assert verify_cache(cache.location) == []


def test_ties_keep_the_order_of_a_cache(job, names):
    """Equal log-probabilities by rising id, though the server sends the higher id first."""
    logprobs = np.full((1, VOCAB_SIZE), -np.log(VOCAB_SIZE), np.float32)
    with ProtocolServer(lambda token_ids: np.repeat(logprobs, len(token_ids), axis=0)) as server:
        made = job.capture(names, **served(server, "sglang"))[:]
    np.testing.assert_array_equal(made.ids, [np.arange(VOCAB_SIZE - TOP_K, VOCAB_SIZE)] * len(made))


def test_tokens_without_mass_are_no_entries(job):
    """A distribution over fewer than k tokens: vLLM writes −9999 for the others."""
    logprobs = np.full(VOCAB_SIZE, -np.inf, np.float32)
    logprobs[[3, 9]] = np.log([0.75, 0.25])
    ids = np.array([9, 3, 3, 9, 9, 4], np.int32)
    tokens = TokenTable(ids, np.zeros_like(ids), np.array([0, 4, 6]))
    with ProtocolServer(lambda token_ids: np.tile(logprobs, (len(token_ids), 1))) as server:
        settings = job.settings(**served(server, "vllm"))
        with start_engine(job, settings) as running:
            made, bad = RowCapturer(running, tokens, settings.rule).rows(0, 6, ignore_progress)
    assert (made.ids[:4, :2] == [3, 9]).all()
    assert np.isneginf(made.logprobs[:4, 2:]).all()
    assert np.exp(made.tail[:4]).max() < 1e-6
    assert bad == [1]


def test_a_next_token_without_mass_is_not_finite(job, names):
    logprobs = np.full(VOCAB_SIZE, -np.inf, np.float32)
    logprobs[[3, 9]] = np.log([0.75, 0.25])
    with (
        ProtocolServer(lambda token_ids: np.tile(logprobs, (len(token_ids), 1))) as server,
        pytest.raises(NonFiniteError, match="document"),
    ):
        job.capture(names, **served(server, "vllm"))


def test_a_model_without_weights_here_is_enough(job, rows, names, tmp_path):
    for file in job.folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with ProtocolServer(rows) as server:
        settings = job.settings(**served(server, "vllm"))
        made = capture(job.store, names, Model.open(str(tmp_path)), job.corpus, settings).artifact
        check_same(job.expected, made[:])
        # With them, it is the same model.
        assert job.capture(names, **served(server, "vllm")).digest == made.digest


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_rows_of_smollm2(smollm2_path, tmp_path, engine):
    from transformers import AutoModelForCausalLM

    from fusestore.corpus.build import write_corpus
    from tests.helpers.tiny_models import TEXTS

    (tmp_path / "t.txt").write_text(" ".join(TEXTS))
    store = Store.open(tmp_path / "store")
    corpus = write_corpus(store, "c", tmp_path / "t.txt")
    model = Model.open(smollm2_path)
    capture(store, "own", model, corpus, CaptureSettings(dtype="float32", profile="lossless"))
    served_model = AutoModelForCausalLM.from_pretrained(smollm2_path).float().eval()
    with ProtocolServer(transformers_rows(served_model), max_logprobs=32) as server:
        settings = CaptureSettings(profile="lossless", **served(server, engine))
        capture(store, engine, model, corpus, settings)
    own, other = (open_cache(store, name)[:] for name in ("own", engine))
    np.testing.assert_allclose(other.logprobs, own.logprobs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(other.label_logprob, own.label_logprob, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.exp(other.tail), np.exp(own.tail), atol=1e-4, rtol=0)
