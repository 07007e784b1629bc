"""A whole fusion of two tiny models, stage by stage, whose every byte is known beforehand."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fusestore.align.run import align
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.build import write_corpus
from fusestore.corpus.corpus import open_corpus
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.run import fuse
from fusestore.models.model import Model
from fusestore.store.inventory import list_artifacts
from fusestore.store.layout import Store
from fusestore.workflows.sharing import CopySettings, copy_artifacts
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

MODELS = ("own", "other")
SETTINGS = CaptureSettings(top_k=4, dtype="float32", rows_per_shard=128, rows_per_chunk=64)
ROWS_PER_SHARD = 100


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: bytes by path."""
    found = {}
    for root, _, names in os.walk(folder):
        prefix = os.path.relpath(root, folder) + "/"
        for name in names:
            found[prefix.removeprefix("./") + name] = Path(f"{root}/{name}").read_bytes()
    return found


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@dataclass(frozen=True)
class SmallFusion:
    """Texts and two models in a folder, and the stages that make a store of them.

    The cache `own` has the target's tokens, `other` those of another tokenizer.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "SmallFusion":
        """Write texts and models."""
        for name, texts, size, adds_bos in (
            ("own", TEXTS, 300, False),
            ("other", TEXTS[::2], 330, True),
        ):
            tokenizer = train_tokenizer(texts, size, adds_bos=adds_bos)
            save_model(folder / name, make_llama(size, context=128, seed=size), tokenizer)
        rows = [json.dumps({"text": f"{index}. {text}"}) for index, text in enumerate(TEXTS)]
        (folder / "texts.jsonl").write_text("".join(f"{row}\n" for row in rows))
        return cls(folder)

    @cached_property
    def models(self) -> dict[str, Model]:
        """The open models by name."""
        return {name: Model.open(str(self.folder / name)) for name in MODELS}

    @property
    def specs(self) -> list[str]:
        """The models as `verify --repair` takes them."""
        return [str(self.folder / name) for name in MODELS]

    @cached_property
    def recipe(self) -> Recipe:
        """Fuses both caches."""
        return Recipe.parse(
            {
                "corpus": "c",
                "split": "train",
                "target": self.models["own"].tokenizer.digest,
                "sources": [{"cache": "own"}, {"cache": "other", "alignment": "a"}],
                "top_k": 4,
                "window_length": 32,
                "rows_per_shard": ROWS_PER_SHARD,
            }
        )

    def build_corpus(self, store: Store) -> None:
        """Makes corpus `c`."""
        write_corpus(store, "c", self.folder / "texts.jsonl")

    def capture(self, store: Store, name: str) -> None:
        """Makes cache `own` or `other`, and its vocabulary."""
        capture(store, name, self.models[name], open_corpus(store, "c"), SETTINGS)

    def align(self, store: Store) -> None:
        """Makes alignment `a` and the vocabulary map."""
        align(store, "other", self.models["own"], name="a")

    def fuse(self, store: Store) -> None:
        """Makes fused dataset `f`."""
        fuse(store, "f", self.recipe)

    def begin_fusing(self, store: Store) -> None:
        """Writes the definition of fused dataset `f`, without any shard."""
        fuse(store, "f", self.recipe, materialize=False)

    @property
    def stages(self) -> dict[str, Callable[[Store], None]]:
        """Every stage, by the artifact that it makes, in order."""
        return {
            "corpus/c": self.build_corpus,
            "cache/own": lambda store: self.capture(store, "own"),
            "cache/other": lambda store: self.capture(store, "other"),
            "alignment/a": self.align,
            "fused/f": self.fuse,
        }

    @cached_property
    def stores(self) -> dict[str, dict[str, bytes]]:
        """All files of the store after each stage, by the artifact it makes; made once."""
        store = Store.open(self.folder / "reference")
        found = {}
        for path, make in self.stages.items():
            make(store)
            found[path] = files_below(store.location.path)
        return found

    @property
    def whole(self) -> dict[str, bytes]:
        """All files of the finished store."""
        return self.stores["fused/f"]

    @cached_property
    def artifacts(self) -> dict[str, str]:
        """The folder of each artifact of the finished store, by `kind/name`."""
        _ = self.whole
        store = Store.open(self.folder / "reference")
        root = store.location.path
        return {
            each.path: each.location.path.relative_to(root).as_posix()
            for each in list_artifacts(store)
        }

    def expected(self, artifact: str) -> dict[str, bytes]:
        """The files of an artifact by their path in its folder."""
        prefix = f"{self.artifacts[artifact]}/"
        return {
            path.removeprefix(prefix): data
            for path, data in self.whole.items()
            if path.startswith(prefix)
        }


def push(source: Store, target: Store, *names: str) -> None:
    """Copy artifacts and their inputs to another store."""
    copy_artifacts(source, target, names, CopySettings(inputs=True, jobs=2))
