"""`auto`: decided by what the device has, settled by the first writer of a cache, kept by all."""

import contextlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from fusestore.cache.writer import CacheWriter
from fusestore.capture import capture_plan as plan
from fusestore.capture import run
from fusestore.capture.estimate import estimate_capture
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import open_corpus
from fusestore.errors import FingerprintMismatchError
from fusestore.models import precision
from fusestore.models.model import Model
from fusestore.models.precision import PrecisionChoice, choose_precision
from fusestore.store.layout import Store
from tests.helpers.lines import Lines
from tests.helpers.store_contents import contents

ROOT = Path(__file__).parents[2]
SETTINGS = CaptureSettings(top_k=7, rows_per_shard=64, rows_per_chunk=16, device="cpu")
OTHER = {"float32": "bfloat16", "bfloat16": "float32"}
BOTH = pytest.mark.parametrize(
    "first", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"]
)

ASK = """
import json, platform
from fusestore.models.model import Model
from fusestore.models.precision import _cpu_capabilities, choose_precision
choice = choose_precision("cpu")
flags = _cpu_capabilities()
has = any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
print(json.dumps([choice.value, choice.reason, has, platform.machine()]))
"""


@cache
def ask(**environment):
    """The choice of a process of its own, and whether its processor has the instructions at all."""
    cleared = {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}
    inherited = {name: value for name, value in os.environ.items() if name not in cleared}
    shown = subprocess.run(
        # bitsandbytes, which the fork server's peft imports, asks torch for the capability once.
        [sys.executable, "-c", ASK],
        env={**inherited, **environment, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(shown)


def test_a_processor_with_the_instructions_takes_bfloat16():
    value, reason, has, architecture = ask()
    if architecture == "x86_64":
        assert value == ("bfloat16" if has else "float32")
    assert reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit",
    [
        {"ATEN_CPU_CAPABILITY": "avx2"},
        pytest.param({"ONEDNN_MAX_CPU_ISA": "AVX2"}, marks=pytest.mark.slow),
        pytest.param({"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, marks=pytest.mark.slow),
        pytest.param({"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_limit_below_the_instructions_makes_it_float32(limit):
    value, reason, has, architecture = ask(**limit)
    if architecture != "x86_64":
        pytest.skip("the limits are those of x86 processors")
    assert value == "float32"
    if has:
        assert ("AVX2" if "ATEN_CPU_CAPABILITY" in limit else "oneDNN") in reason


@pytest.mark.slow
def test_other_limits_change_nothing():
    assert ask(ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")[0] == ask()[0]


@pytest.mark.parametrize(
    ("flags", "level", "onednn", "expected"),
    [
        ({"avx512_bf16": True}, "AVX512", True, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "AVX512", True, "bfloat16"),
        ({"avx512_bf16": True}, "AVX2", True, "float32"),
        ({"avx512_bf16": True}, "AVX512", False, "float32"),
        ({"avx512_f": True, "avx512_bf16": False}, "AVX512", True, "float32"),
        ({"bf16": True}, "DEFAULT", True, "bfloat16"),
        ({"bf16": True}, "SVE256", False, "float32"),
        ({"bf16": False}, "DEFAULT", True, "float32"),
    ],
)
def test_processors_by_their_flags(monkeypatch, flags, level, onednn, expected):
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(precision, "_cpu_capabilities", lambda: flags)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    monkeypatch.setattr(torch._C, "_has_mkldnn", True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    assert choose_precision("cpu").value == expected


def test_other_devices(monkeypatch):
    assert choose_precision("mps").value == "float32"
    asked = []

    def supported(*, including_emulation):
        asked.append(including_emulation)
        return len(asked) == 1

    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_precision("cuda:1").value == "bfloat16"
    assert choose_precision("cuda").value == "float32"
    assert asked == [False, False]


@pytest.fixture
def machine(monkeypatch):
    """Makes `auto` choose like a machine that has bfloat16, or has not."""

    def become(value):
        choice = PrecisionChoice(value, "made up")
        monkeypatch.setattr(plan, "choose_precision", lambda _device: choice)

    return become


@pytest.fixture
def new_capture(tiny_folder, new_store):
    """Captures the tiny model into the store at a path, made with its corpus if need be."""

    def make(root, settings=SETTINGS, reporter=None):
        if not root.exists():
            new_store(root)
        store = Store.open(root)
        corpus = open_corpus(store, "demo")
        result = capture(
            store, "tiny", Model.open(tiny_folder), corpus, settings, reporter=reporter
        )
        return result.artifact, result.created

    return make


def stop_after(monkeypatch, shards):
    """Makes the writer fail once so many shards are written."""
    write, left = CacheWriter.write_shard, iter(range(shards))

    def limited(self, shard, rows):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return write(self, shard, rows)

    monkeypatch.setattr(CacheWriter, "write_shard", limited)


@BOTH
def test_a_cache_is_finished_in_the_dtype_it_was_begun_in(
    new_capture, machine, monkeypatch, tmp_path, first
):
    """By a worker that would have chosen the other: the bytes of one machine alone."""
    machine(first)
    alone, begun, finished = Lines(), Lines(), Lines()
    new_capture(tmp_path / "alone", reporter=alone)
    assert alone.said == [f"tiny: dtype {first} (made up)"]
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            new_capture(tmp_path / "shared", reporter=begun)
    assert begun.said == alone.said
    folder = tmp_path / "shared" / "caches" / "tiny"
    assert json.loads((folder / "fingerprint.json").read_text())["dtype"] == first
    assert not (folder / "manifest.json").exists()

    machine(OTHER[first])
    explicit = SETTINGS.model_copy(update={"dtype": OTHER[first]})
    with pytest.raises(FingerprintMismatchError, match=f"dtype: '{first}' stored"):
        new_capture(tmp_path / "shared", explicit)
    cache, built = new_capture(tmp_path / "shared", reporter=finished)
    assert built
    assert cache.fingerprint.dtype == first
    assert f"tiny: dtype {first} (this cache was begun with it)" in finished.said
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")

    again = Lines()
    assert new_capture(tmp_path / "shared", reporter=again)[1] is False
    assert again.said == []
    with pytest.raises(FingerprintMismatchError, match="dtype"):
        new_capture(tmp_path / "shared", explicit)


@BOTH
def test_what_is_published_first_wins(new_capture, machine, monkeypatch, tmp_path, first):
    """Two machines begin at once: the loser takes the winner's dtype, unless it was told one."""
    machine(first)
    new_capture(tmp_path / "alone")
    rivals = iter([tmp_path / "shared", tmp_path / "told"])
    settle = run.settle_order

    def outrun(*arguments):
        order = settle(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(run, "settle_order", settle)
            machine(first)
            stop_after(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                new_capture(next(rivals))
        monkeypatch.setattr(run, "settle_order", settle)
        return order

    machine(OTHER[first])
    monkeypatch.setattr(run, "settle_order", outrun)
    cache, _ = new_capture(tmp_path / "shared")
    assert cache.fingerprint.dtype == first
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")

    monkeypatch.setattr(run, "settle_order", outrun)
    explicit = SETTINGS.model_copy(update={"dtype": OTHER[first]})
    with pytest.raises(FingerprintMismatchError, match="dtype"):
        new_capture(tmp_path / "told", explicit)


@BOTH
def test_an_estimate_says_its_dtype_too(tiny_folder, new_store, machine, tmp_path, first):
    machine(first)
    lines = Lines()
    store = Store.open(new_store(tmp_path / "store"))
    corpus = open_corpus(store, "demo")
    model = Model.open(tiny_folder)
    estimate_capture(store, "estimate", model, corpus, SETTINGS, reporter=lines)
    assert lines.said == [f"estimate: dtype {first} (made up)"]
