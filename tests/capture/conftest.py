"""A tiny model, a small corpus, and processes that capture the one over the other."""

import pytest

from fusestore.corpus.build import write_corpus
from tests.helpers.capture_processes import CaptureProcesses
from tests.helpers.store_contents import contents
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

VOCABULARY_SIZE = 300


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A Hugging Face folder of a random Llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = train_tokenizer(TEXTS, VOCABULARY_SIZE)
    return save_model(folder, make_llama(VOCABULARY_SIZE), tokenizer)


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(f'{{"text": "{text} {number}"}}\n' for number, text in _texts()))
    return path


def _texts():
    return ((number, TEXTS[number % len(TEXTS)]) for number in range(3 * len(TEXTS)))


@pytest.fixture(scope="session")
def captures(tiny_folder):
    """Captures with shards small enough that there are dozens of them."""
    # float32 is what the weights lie in: to convert them while it loads them, transformers would
    # need torch's thread pool, which does not survive the server's fork.
    processes = CaptureProcesses(
        tiny_folder, top_k=7, rows_per_shard=64, rows_per_chunk=16, dtype="float32"
    )
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def new_store(texts_file):
    """Makes a store of the corpus at a path or URL."""

    def make(root):
        write_corpus(root, "demo", texts_file)
        return root

    return make


@pytest.fixture(scope="session")
def whole(tmp_path_factory, captures, new_store):
    """What an uninterrupted capture by one process leaves: every file's bytes."""
    root = new_store(tmp_path_factory.mktemp("whole"))
    assert captures.run(root)[0]
    return contents(root)
