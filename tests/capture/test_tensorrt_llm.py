"""TensorRT-LLM's rows as its source and its documentation describe them; it does not run here."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fusestore.capture.engines.engine_registry import engine_class
from fusestore.capture.engines.protocol import Document, EngineJob
from fusestore.capture.engines.served_rows import BadAnswerError
from fusestore.capture.engines.tensorrt_llm_engine import TensorRTLLMEngine, read_rows
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.errors import EngineError, MissingDependencyError
from fusestore.models.model import Model
from fusestore.progress import SilentReporter, ignore_progress
from fusestore.store.layout import Store
from fusestore.testing import transformers_rows
from tests.helpers.engine_job import TOP_K, VOCAB_SIZE, check_same, make_job


def element(**probabilities):
    """`{token id: Logprob(logprob, rank)}`, the most likely first, the next token at the end."""
    return {
        int(key[1:]): SimpleNamespace(logprob=float(np.log(p)), rank=rank + 1)
        for rank, (key, p) in enumerate(probabilities.items())
    }


ELEMENTS = [element(_2=0.5, _3=0.3, _7=0.1), element(_2=0.6, _3=0.2), element(_1=0.9, _2=0.05)]


def test_element_i_is_row_i():
    """And not the place of token i, where vLLM has it."""
    rows = read_rows(ELEMENTS, [5, 7, 2], 2, 10)
    np.testing.assert_array_equal(rows.ids, [[2, 3], [2, 3], [1, 2]])
    np.testing.assert_allclose(np.exp(rows.label_logprob[:2]), [0.1, 0.6], rtol=1e-6)
    np.testing.assert_allclose(np.exp(rows.tail), [0.2, 0.2, 0.05], rtol=1e-5)


@pytest.mark.parametrize(
    ("elements", "says"),
    [
        (None, "0 elements for 3 tokens"),
        (ELEMENTS[1:], "2 elements for 3 tokens"),
        ([ELEMENTS[1], *ELEMENTS[1:]], "row 0 lacks the next token, 7.*update"),
        ([None, *ELEMENTS[1:]], "row 0 is no dictionary"),
        ([ELEMENTS[0], -0.5, ELEMENTS[2]], "row 1 is no dictionary"),
        ([ELEMENTS[0], ELEMENTS[1], {}], "has 0 entries"),
        ([ELEMENTS[0], ELEMENTS[1], element(_1=3.0, _2=0.1)], "must be at most 0"),
    ],
)
def test_what_cannot_be_right_is_refused(elements, says):
    with pytest.raises(BadAnswerError, match=says):
        read_rows(elements, [5, 7, 2], 2, 10)


class Described:
    """`LLM` as it is described: rows of a model, k entries and the next token after them."""

    def __init__(self, model):
        self._rows, self.ended, self.shift = transformers_rows(model), False, 0

    def generate(self, inputs, sampling_params, use_tqdm):
        assert not use_tqdm
        assert sampling_params.max_tokens == 1
        return [self._output(each["prompt_token_ids"], sampling_params) for each in inputs]

    def shutdown(self):
        self.ended = True

    def _placed(self, elements):
        return [*elements[-self.shift :], *elements[: -self.shift]] if self.shift else elements

    def _output(self, ids, parameters):
        rows = self._rows(ids)
        generated = int(rows[-1].argmax())
        elements = []
        for row, following in zip(rows, [*ids[1:], generated], strict=True):
            chosen = np.argsort(-row, kind="stable")[: parameters.prompt_logprobs].tolist()
            chosen += [following] * (following not in chosen)
            elements.append({token: SimpleNamespace(logprob=float(row[token])) for token in chosen})
        output = SimpleNamespace(prompt_logprobs=self._placed(elements), token_ids=[generated])
        return SimpleNamespace(prompt_token_ids=ids, outputs=[output])


@pytest.fixture
def described(tmp_path, monkeypatch):
    """The engine over a job, as `start` would make it."""
    job = make_job(tmp_path)
    module = SimpleNamespace(SamplingParams=lambda **given: SimpleNamespace(**given))
    monkeypatch.setitem(sys.modules, "tensorrt_llm", module)
    llm = Described(job.model)
    settings = CaptureSettings(engine="tensorrt-llm", top_k=TOP_K, batch_size=2)
    engine_job = EngineJob(
        name="teacher",
        model=Model.open(str(job.folder)),
        settings=settings,
        vocab_size=VOCAB_SIZE,
        max_length=64,
        dtype="float32",
        read_tokens=lambda: job.tokens,
        reporter=SilentReporter(),
    )
    return job, llm, TensorRTLLMEngine(llm, engine_job), settings


def test_rows_are_those_of_the_model(described):
    job, llm, engine, settings = described
    with engine:
        capturer = RowCapturer(engine, job.tokens, settings.rule)
        rows, bad = capturer.rows(0, job.tokens.num_tokens, ignore_progress)
    check_same(job.expected, rows)
    assert bad == []
    assert llm.ended


def test_rows_of_another_place_are_refused(described):
    job, llm, engine, settings = described
    llm.shift = 1
    document = Document(3, 0, job.tokens.document(3)[0])
    with pytest.raises(EngineError, match="wrong rows for document 3"):
        list(engine.run([document], settings.rule))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed"
)
def test_without_the_package_it_says_so(tiny_folder, texts_file, tmp_path):
    assert engine_class("tensorrt-llm") is TensorRTLLMEngine
    store = Store.open(tmp_path / "store")
    corpus = write_corpus(store, "texts", texts_file)
    settings = CaptureSettings(engine="tensorrt-llm")
    with pytest.raises(MissingDependencyError, match=r"tensorrt_llm.*vllm or sglang"):
        capture(store, "none", Model.open(tiny_folder), corpus, settings)
