"""Compiles most numba kernels, before several test processes would each do that.

Run as a module. What is not called here is compiled where a test calls it.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from fusestore.align.run import align
from fusestore.align.settings import AlignSettings
from fusestore.cache.rule import RuleName
from fusestore.capture.run import capture
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import open_corpus
from fusestore.forecast.run import forecast
from fusestore.forecast.settings import ForecastSettings
from fusestore.fuse.recipe import Recipe
from fusestore.models.model import Model
from fusestore.models.target import Target
from tests.helpers.small_store import SmallStore, make_small_store
from tests.helpers.tiny_models import TEXTS, make_llama, save_model, train_tokenizer

RULES: tuple[RuleName, ...] = ("top-k", "sampled")
METHODS = (
    AlignSettings(method="hybrid", vocabulary="mined"),
    AlignSettings(method="mined", vocabulary="statistical"),
    AlignSettings(method="anchored", vocabulary="prefix"),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(part, Path(folder) / part.__name__) for part in (pairs, rows)]:
            done.result()


def pairs(folder: Path) -> None:
    """Kernels of alignments and vocabulary maps."""
    small = made(folder)
    for number, settings in enumerate(METHODS):
        target = Target.of_tokenizer(small.target, f"target-{number}")
        align(small.store, "other", target, settings)


def rows(folder: Path) -> None:
    """Kernels of captures, fusions and forecasts."""
    small = made(folder)
    forecast(small.store, Recipe.parse(small.recipe()), ForecastSettings(split="held_out"))
    tokenizer = train_tokenizer(TEXTS, 300)
    save_model(folder / "model", make_llama(len(tokenizer), context=512), tokenizer)
    for selection in RULES:
        capture(
            small.store,
            selection,
            Model.open(str(folder / "model")),
            open_corpus(small.store, "c"),
            CaptureSettings(selection=selection, top_k=4, dtype="float32"),
        )


def made(folder: Path) -> SmallStore:
    folder.mkdir()
    return make_small_store(folder / "store", folder, held_out=8)


if __name__ == "__main__":
    main()
