"""Pages of the Python reference: which names are on which page. mkdocstrings fills in the rest."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import NamedTuple

from .links import ROOT
from .tables import table

FOLDER = "reference/python/"


class ApiPage(NamedTuple):
    """One page.

    Attributes:
        slug: its file.
        title: what stands at its top, and in the navigation.
        text: what it is about.
        module: of the names.
        names: in the order of the page; all that the module exports if there are none.
    """

    slug: str
    title: str
    text: str
    module: str = "fusestore"
    names: tuple[str, ...] = ()


PAGES = (
    ApiPage(
        "store",
        "Store",
        "A store and its verbs, which are what the command line does. Each verb that makes an "
        "artifact returns its handle.",
        names=("open_store", "Store"),
    ),
    ApiPage(
        "artifacts",
        "Artifacts",
        "Handles of what a store holds, with their rows as tables, and what their manifests say.",
        names=(
            *("Corpus", "CorpusManifest", "Conversation", "Turn"),
            *("Cache", "CacheManifest", "Fingerprint", "KeptRows", "Rows", "Rule"),
            *("Alignment", "AlignmentManifest", "Fused", "FusedManifest", "FusionPlan"),
            *("TrainedModel", "MergedModel", "Artifact", "License", "ShardPlan"),
            *("open_corpus", "open_cache"),
        ),
    ),
    ApiPage(
        "settings",
        "Settings",
        "Settings of the stages. Each is immutable, is checked when it is made, and has the fields "
        "that a [fusion.toml](../fusion-toml.md) has as keys and a command as options.",
        names=(
            *("CorpusSettings", "CaptureSettings", "ImportSettings", "AlignSettings", "Recipe"),
            *("RecipeSource", "ForecastSettings", "TrainSettings", "LoraSettings"),
            *("MergeSettings", "CopySettings", "PublishSettings", "ReportSettings"),
            "GarbageSettings",
        ),
    ),
    ApiPage(
        "models",
        "Models, tokenizers and places",
        "What a capture runs, how tokens stand for bytes, and where files are.",
        names=(
            *("Model", "Target", "Placement", "Tokenizer", "TokenTable", "Vocabulary"),
            *("Spelling", "Location", "ListedFile"),
        ),
    ),
    ApiPage(
        "results",
        "Results",
        "What verbs return that make no artifact, and how they report progress.",
        names=(
            *("Forecast", "Comparison", "StoreReport", "Details", "Tree", "Usage", "Finding"),
            *("Repair", "Removal", "Renaming", "Garbage", "Shared", "Published", "Exported"),
            *("StageResult", "Reporter", "ShownTable"),
        ),
    ),
    ApiPage(
        "data",
        "fs.data",
        "Fused datasets as training reads them: see [loading](../../loading.md).",
        "fusestore.data",
    ),
    ApiPage(
        "losses",
        "fs.losses",
        "The loss over sparse fused distributions: see [losses](../../losses.md).",
        "fusestore.losses",
    ),
    ApiPage(
        "train",
        "fs.train",
        "The trainer, and scores on held-out text: see [training](../../training.md).",
        "fusestore.train",
    ),
    ApiPage(
        "align",
        "fs.align",
        "Vocabulary maps and token alignments as functions: see [alignment](../../alignment.md).",
        "fusestore.align",
    ),
    ApiPage(
        "stages",
        "fs.stages",
        "The functions behind the verbs of a store, with whether the artifact was made now.",
        "fusestore.stages",
    ),
    ApiPage(
        "sharing",
        "fs.sharing",
        "Copies between stores: see [sharing](../../sharing.md).",
        "fusestore.workflows.sharing",
    ),
    ApiPage(
        "integrations",
        "fusestore.integrations",
        "fusestore in other trainers: see [training](../../training.md#other-trainers).",
        "fusestore.integrations",
    ),
    ApiPage(
        "testing",
        "fusestore.testing",
        "A model server for tests of your own.",
        "fusestore.testing",
    ),
    ApiPage(
        "extending",
        "Extension points",
        "What a module of yours registers: see the how-to pages about a "
        "[strategy](../../how-to/add-a-strategy.md), a "
        "[divergence](../../how-to/add-a-divergence.md), an "
        "[engine](../../how-to/add-an-engine.md) and a "
        "[kind of artifact](../../how-to/add-an-artifact-kind.md).",
        names=(
            *("load_plugins", "register_strategy", "register_divergence", "register_engine"),
            "capture.engines.protocol.Engine",
            "capture.engines.protocol.EngineJob",
            "capture.engines.protocol.Document",
            "capture.engines.protocol.DocumentRows",
            "capture.engines.protocol.Capabilities",
            "store.registry.register",
            "store.registry.ArtifactKind",
        ),
    ),
)


def api_pages() -> Iterator[tuple[str, str]]:
    """Source path and Markdown of each page: an overview, and one for each subject."""
    yield f"{FOLDER}index.md", _overview()
    for page in PAGES:
        directives = [f"::: {page.module}.{name}" for name in names_of(page)]
        yield (
            f"{FOLDER}{page.slug}.md",
            "\n\n".join([f"# {page.title}", page.text, *directives]) + "\n",
        )


@functools.cache
def names_of(page: ApiPage) -> tuple[str, ...]:
    """The names on a page; without their own, what the module lists in `__all__`."""
    return page.names or tuple(_exported(page.module))


@functools.cache
def public_names() -> dict[str, str]:
    """The place on the site of each name as texts write it: `fs.Recipe`, `store.capture`."""
    places: dict[str, str] = {}
    for page in PAGES:
        written = page.title if page.title.startswith("fs.") else page.module
        written = "fs" if written == "fusestore" else written
        for name in names_of(page):
            place = f"{FOLDER}{page.slug}.md#{page.module}.{name}"
            places[f"{written}.{name}"] = places[f"{page.module}.{name}"] = place
            if page.module != "fusestore" and name in _exported("fusestore"):
                places[f"fs.{name}"] = place
    for verb in _verbs():
        places[f"store.{verb}"] = places[f"Store.{verb}"] = (
            f"{FOLDER}store.md#fusestore.Store.{verb}"
        )
    return places


def _overview() -> str:
    rows = []
    for page in PAGES:
        names = [
            f"[`{name.rpartition('.')[2]}`]({page.slug}.md#{page.module}.{name})"
            for name in names_of(page)
        ]
        rows.append((f"[{page.title}]({page.slug}.md)", ", ".join(names)))
    return "\n\n".join(
        [
            "# What can I call from Python?",
            "`import fusestore as fs` imports nothing heavy; each name is loaded when it is first "
            "used. What is listed here is public, and nothing else is.",
            table(["Page", "Names"], rows),
            "[Errors](../errors.md) has the classes that these raise.",
        ]
    )


def _tree(module: str) -> ast.Module:
    folder = ROOT / module.replace(".", "/")
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _exported(module: str) -> list[str]:
    """`__all__` of a module, read without importing it."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _verbs() -> list[str]:
    """The public methods of `Store`."""
    return [
        item.name
        for module in ("fusestore.api", "fusestore.contents")
        for node in _tree(module).body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
    ]
