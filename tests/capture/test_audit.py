"""The audit finds what no check of one row can: rows that are right, but for something else."""

import json

import numpy as np
import pytest

from fusestore.cache.rows import Rows
from fusestore.capture.audit import MIN_DOCUMENTS, audited_documents, compare
from fusestore.errors import EngineError
from fusestore.testing import SILENT_FAULTS, ProtocolServer, transformers_rows
from fusestore.tokenizers.token_table import TokenTable
from tests.helpers.command import Command
from tests.helpers.engine_job import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return make_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def rows(job):
    return transformers_rows(job.model)


def served(server, **changes):
    return {"engine": "vllm", "server": (server.url,), "retry_seconds": 30, **changes}


def test_the_model_itself_is_equal(job, rows, capsys, monkeypatch):
    with ProtocolServer(rows) as server:
        cache = job.capture("same", **served(server))
    audit = cache.manifest.audit
    assert (audit.verdict, audit.reference) == ("equal", "transformers")
    assert audit.num_documents >= MIN_DOCUMENTS
    assert audit.shared_entries > 0.99
    shown = Command(capsys, monkeypatch)(
        "show", "cache/same", "-s", job.store.location.url, "--json"
    ).out
    assert json.loads(shown)["manifest"]["audit"]["verdict"] == "equal"


@pytest.mark.parametrize("fault", SILENT_FAULTS)
def test_silent_faults_are_refused(job, rows, fault):
    name = "silent" + fault.split()[-1]
    with ProtocolServer(rows, fault_rate=1.0, faults=[fault]) as server:
        with pytest.raises(EngineError, match=f"cache '{name}' are not those of its model.*nats"):
            job.capture(name, **served(server))
        assert not (job.store.cache(name) / "manifest.json").exists()
        # Whoever knows better may say so.
        cache = job.capture(name, **served(server, audit_limit=100.0))
        assert cache.manifest.audit.worst_document_nats > 0.1


def test_noise_is_reported_as_noise(job, rows):
    """As of quantized keys and values: small differences everywhere."""

    def noisy(token_ids):
        exact = rows(token_ids).astype(np.float64)
        moved = exact + np.random.default_rng(len(token_ids)).normal(0, 0.02, exact.shape)
        return (moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)).astype(np.float32)

    with ProtocolServer(noisy) as server:
        audit = job.capture("noisy", **served(server)).manifest.audit
    assert audit.verdict == "noise"
    assert 0.005 < audit.label_nats < 0.05


def test_without_weights_the_engine_is_asked_again(job, rows):
    """A server that mixes up its requests does not repeat itself."""
    with ProtocolServer(rows) as server:
        audit = job.capture("itself", **served(server, audit="engine")).manifest.audit
    assert (audit.verdict, audit.reference) == ("equal", "vllm")
    with (
        ProtocolServer(rows, fault_rate=0.4, faults=["other rows"]) as server,
        pytest.raises(EngineError, match="not those of its model"),
    ):
        job.capture("mixed", **served(server, audit="engine"))


def test_the_sample_is_spread_and_leaves_out_what_has_no_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 5, 20_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.zeros(offsets[-1], np.int32)
    tokens = TokenTable(ids, ids, offsets)
    skipped = np.flatnonzero(lengths > 1)[::2].tolist()
    documents = audited_documents(tokens, skipped)
    assert len(set(documents.tolist())) == len(documents) >= MIN_DOCUMENTS
    assert lengths[documents].min() > 1
    assert not set(documents.tolist()) & set(skipped)
    assert np.diff(documents).max() < 3 * len(lengths) / len(documents)
    few = TokenTable(ids[:7], ids[:7], np.array([0, 1, 1, 3, 7]))
    assert audited_documents(few, []).tolist() == [2, 3]
    assert audited_documents(few, [2, 3]).tolist() == []


def test_figures_are_those_of_the_plain_way():
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((40, 20)), axis=1)[:, :5].astype(np.int32)
    logprobs = np.log(-np.sort(-rng.dirichlet(np.ones(6), 40))[:, :5]).astype(np.float32)
    label = -rng.exponential(2.0, 40).astype(np.float32)
    # A document's last row has no label.
    label[[14, 39]] = np.nan
    first = Rows(ids, logprobs, np.zeros(40, np.float32), label)
    moved = label + rng.normal(0, 0.01, 40).astype(np.float32)
    other = np.where(rng.random(ids.shape) < 0.2, ids + 20, ids).astype(np.int32)
    second = Rows(other, logprobs, first.tail, moved)
    documents = [(0, 15), (15, 40)]
    parts = [Rows(*(each[low:high] for each in vars(first).values())) for low, high in documents]
    audit = compare("x", parts, second, np.array([0, 15, 40]), limit=1.0)
    nats = [np.abs(label[low : high - 1] - moved[low : high - 1]) for low, high in documents]
    assert audit.label_nats == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
    assert audit.largest_label_nats == pytest.approx(np.concatenate(nats).max(), rel=1e-5)
    assert audit.worst_document_nats == pytest.approx(max(map(np.mean, nats)), rel=1e-5)
    assert audit.worst_document == int(np.argmax([each.mean() for each in nats]))
    same = [(ids[low:high] == other[low:high]).mean() for low, high in documents]
    assert audit.shared_entries == pytest.approx(np.mean(same))
    assert audit.verdict == "noise"
    assert compare("x", parts, second, np.array([0, 15, 40]), 1e-4).verdict == "different"
    assert compare("x", parts, first, np.array([0, 15, 40]), 1e-4).verdict == "equal"
