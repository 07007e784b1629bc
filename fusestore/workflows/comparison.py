"""`compare`: models however they were made, and ensembles of caches, on the same held-out text."""

from __future__ import annotations

from collections.abc import Sequence

from fusestore.errors import InvalidInputError
from fusestore.forecast.forecast import Forecast
from fusestore.models.model import Model
from fusestore.models.precision import Precision, PrecisionSetting, settle_precision
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.inventory import how_made, list_things
from fusestore.store.layout import Store
from fusestore.store.manifest import Frozen
from fusestore.train.evaluate import score as score_model
from fusestore.train.run import held_out_tokens


class ComparedRow(Frozen):
    """One way of predicting the text.

    Attributes:
        name: `model/NAME` of the store, a model as it was given, `cache/NAME`, or `ensemble`.
        made: how it came to be.
        bits_per_byte: of the held-out text; lower is better.
        covered: share of the tokens that it was measured on; below 1 for caches of another
            tokenizer, whose figure does not compare.
    """

    name: str
    made: str
    bits_per_byte: float
    covered: float


class Comparison(Frozen):
    """What predicts one split best.

    Attributes:
        corpus, split: the text.
        precision: what the models computed in.
        rows: the best first.
    """

    corpus: str
    split: str
    precision: Precision
    rows: tuple[ComparedRow, ...]


def compare(
    store: Store,
    corpus: str,
    split: str,
    models: Sequence[str] = (),
    forecast: Forecast | None = None,
    reporter: Reporter | None = None,
    *,
    precision: PrecisionSetting = "auto",
) -> Comparison:
    """Score models on a split, each by its own tokenizer, beside what caches say of ensembles.

    Args:
        store: holds the corpus, and the complete models that are compared.
        corpus: its name.
        split: the split.
        models: further ones, by what `Model.open` takes: folders, hub ids, `package:NAME`, the
            names of caches.
        forecast: of caches on this split, for its sources and their uniform ensemble.
        reporter: receives progress updates.
        precision: what the models compute in, on this machine's processor; `auto`: bfloat16 where
            it has that in hardware.

    Raises:
        NotFoundError: no such corpus or model.
        InvalidInputError: no such split, a forecast of another one, nothing to compare, or a model
            that is no causal language model.
    """
    reporter = reporter or SilentReporter()
    settled = settle_precision(precision, "cpu", reporter)
    given = {spec: Model.open(spec, store=store) for spec in models}
    for model in given.values():
        # What is not there is said before anything is scored.
        _ = model.folder
    rows = []
    for thing in list_things(store):
        if thing.kind == "model" and thing.manifest is not None:
            name = f"model/{thing.name}"
            model = Model.open(thing.name, store=store)
            score = _bits_per_byte(store, model, corpus, split, name, settled, reporter)
            rows.append(_row(name, how_made(thing.manifest), score))
    for spec, model in given.items():
        score = _bits_per_byte(store, model, corpus, split, spec, settled, reporter)
        rows.append(_row(spec, "as given", score))
    if not rows and forecast is None:
        raise InvalidInputError(
            f"There are no models in {store.location} to compare. Train or merge some, or name "
            "others."
        )
    if forecast is not None:
        if (forecast.recipe.corpus, forecast.recipe.split) != (corpus, split):
            raise InvalidInputError(
                f"The forecast is of {forecast.recipe.corpus}/{forecast.recipe.split}, not of "
                f"{corpus}/{split}."
            )
        rows += _of_caches(forecast)
    rows.sort(key=lambda row: (row.bits_per_byte, row.name))
    return Comparison(corpus=corpus, split=split, precision=settled, rows=tuple(rows))


def _row(name: str, made: str, bits_per_byte: float) -> ComparedRow:
    return ComparedRow(name=name, made=made, bits_per_byte=bits_per_byte, covered=1.0)


def _bits_per_byte(
    store: Store,
    model: Model,
    corpus: str,
    split: str,
    name: str,
    precision: Precision,
    reporter: Reporter,
) -> float:
    tokens = held_out_tokens(store, model.tokenizer, corpus, split)
    loaded = model.load(device="cpu")
    return score_model(tokens, precision, name, reporter, loaded)["bits_per_byte"]


def _of_caches(forecast: Forecast) -> list[ComparedRow]:
    """The sources alone, and the ensemble that sees nothing of the answer."""
    found = [(f"cache/{s.cache}", "its cached rows", s.alone) for s in forecast.sources]
    found += [
        ("ensemble", f"uniform mixture of {', '.join(mixture.sources)}", mixture)
        for mixture in forecast.strategies
        if mixture.strategy == "uniform"
    ]
    return [
        ComparedRow(
            name=name,
            made=made,
            bits_per_byte=mixture.bits_per_byte,
            covered=mixture.covered,
        )
        for name, made, mixture in found
        if mixture.bits_per_byte is not None
    ]
