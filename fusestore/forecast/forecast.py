"""`Forecast`: measurements of a fusion, made from its caches before anything is trained.

docs/fusion.md defines every number, and the limits of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from fusestore.fuse.choices import FitBy, Granularity
from fusestore.fuse.recipe import Recipe
from fusestore.store.manifest import Frozen
from fusestore.store.shown_html import tables_html
from fusestore.store.shown_table import ShownTable, decimal, percent

Sees = Literal["nothing", "text", "label"]
"""What a mixture's weights see of the text that it is measured on. text: scores of whole documents
or windows, which training may use and a prediction may not. label: the next token alone, so the
mixture is an oracle, and its figures are a ceiling."""

PAYS = 0.001
"""Share of the best source's bits per byte that a fusion must save to be expected to pay."""


class MixtureForecast(Frozen):
    """How well one way of fusing predicts the target's own next tokens.

    A value is None where nothing was measured. `covered`, the next three and the last two are over
    the positions that this mixture supervises, and are comparable between mixtures that cover the
    same positions. `common_bits_per_byte` is always comparable.

    Attributes:
        strategy: the strategy that weights the sources; `single` for one source.
        granularity: the unit of weighting; None where it makes no difference.
        fit_by: what the weights of a learned strategy depend on; None for other strategies.
        sees: what its weights see of the measured text; `label` is an oracle.
        sources: names of the caches.
        covered: share of the predicted positions that have a distribution.
        nats_per_token: mean of −log p(next token), before the mixture is cut to `top_k` entries.
        bits_per_byte: the same by the bytes of those tokens.
        stored_bits_per_byte: the same of the rows as they would be stored. If they do not keep
            their label, a next token outside the `top_k` entries has an even share of the tail.
        common_bits_per_byte: `bits_per_byte` over the positions that every source may supervise.
        label_in_tail: share of next tokens outside the stored entries.
        tail_mass: mean mass outside the stored entries.
    """

    strategy: str
    granularity: Granularity | None
    fit_by: FitBy | None = None
    sees: Sees
    sources: tuple[str, ...]
    covered: float
    nats_per_token: float | None
    bits_per_byte: float | None
    stored_bits_per_byte: float | None
    common_bits_per_byte: float | None
    label_in_tail: float | None
    tail_mass: float | None


class SourceForecast(Frozen):
    """The forecast of one source. Shares lie in [0, 1]; None where nothing was measured.

    Attributes:
        cache: its name.
        exact: whether it has the target's tokenizer, so that its figures are the model's own.
        own_bits_per_byte: over its own tokens: the model's quality, whatever its tokenizer.
        alone: the forecast with it as the only source.
        positions_span: share of target positions aligned to it by equal end offsets.
        positions_inside: share that end inside one of its tokens.
        positions_mined: share aligned by minimum edit distance alone.
        positions_masked: share after which no token that is trained on follows, so that no source
            has a row for them; 0 in a corpus of texts.
        tail_mass: mean mass outside its cached entries, over the positions it may supervise.
        unmapped_mass: mean mass lost because the vocabulary map sends its tokens nowhere.
        label_guessed: share of next tokens, all of `mined` pairs, without an exact probability;
            that of the projected row, or an even share of its tail, stands for it.
        documents: documents it takes part in.
        documents_won: share of the documents where its score is the lowest.
        document_margin: mean difference to the next best score, over the documents it wins.
        tokens_won: share of the common positions where it gives the next token most probability.
        token_margin: mean difference to the next best source in bits, over the tokens it wins.
    """

    cache: str
    exact: bool
    own_bits_per_byte: float | None
    alone: MixtureForecast
    positions_span: float
    positions_inside: float
    positions_mined: float
    positions_masked: float
    tail_mass: float | None
    unmapped_mass: float | None
    label_guessed: float | None
    documents: int
    documents_won: float
    document_margin: float | None
    tokens_won: float | None
    token_margin: float | None

    @property
    def unaligned(self) -> float:
        """Share of target positions that are not masked and have no row of this source."""
        aligned = self.positions_span + self.positions_inside + self.positions_mined
        return max(0.0, 1 - aligned - self.positions_masked)


class Verdict(Frozen):
    """Whether fusion is expected to pay, over the positions that every source may supervise.

    Only mixtures that see nothing of the measured text are compared with the sources.

    Attributes:
        pays: whether the best mixture saves at least 0.1 % of the best source's bits per byte.
        source: cache of the best source.
        source_bits_per_byte: of it.
        strategy: of the best mixture; None if no mixture was measured.
        fit_by: what its weights depend on, if it is `em`.
        bits_per_byte: of it.
    """

    pays: bool
    source: str | None
    source_bits_per_byte: float | None
    strategy: str | None
    fit_by: FitBy | None
    bits_per_byte: float | None

    @classmethod
    def of(cls, sources: Sequence[SourceForecast], mixtures: Sequence[MixtureForecast]) -> Verdict:
        """Compare the best mixture that sees nothing of the text with the best source."""
        alone = [
            (source.alone.common_bits_per_byte, source.cache)
            for source in sources
            if source.alone.common_bits_per_byte is not None
        ]
        blind = [
            (mixture.common_bits_per_byte, mixture)
            for mixture in mixtures
            if mixture.sees == "nothing" and mixture.common_bits_per_byte is not None
        ]
        bits, cache = min(alone, default=(None, None))
        least, best = min(blind, key=lambda pair: pair[0], default=(None, None))
        return cls(
            pays=bits is not None and least is not None and least < bits * (1 - PAYS),
            source=cache,
            source_bits_per_byte=bits,
            strategy=None if best is None else best.strategy,
            fit_by=best.fit_by if best is not None and best.strategy == "em" else None,
            bits_per_byte=least,
        )

    def __str__(self) -> str:
        """One sentence."""
        if self.bits_per_byte is None or self.source_bits_per_byte is None:
            return "Whether fusing pays was not measured: no mixture was compared with a source."
        by = f" by {self.fit_by}" if self.fit_by not in (None, "global") else ""
        saved = self.source_bits_per_byte - self.bits_per_byte
        share = saved / self.source_bits_per_byte if self.source_bits_per_byte else 0.0
        figures = f"{self.strategy}{by} gives {self.bits_per_byte:.4f} bits per byte on this text"
        source = f"the best single source, {self.source} ({self.source_bits_per_byte:.4f})"
        if self.pays:
            return (
                f"Fusing is expected to pay: {figures}, {saved:.4f} ({share:.1%}) below {source}."
            )
        where = f"{-saved:.4f} above" if saved < 0 else f"only {saved:.4f} ({share:.2%}) below"
        return (
            "Fusing is not expected to pay: the best mixture that does not see the measured text, "
            f"{figures}, {where} {source}."
        )


class Agreement(Frozen):
    """How similar two sources are, over the positions that both may supervise.

    Attributes:
        first, second: names of the caches.
        num_positions: number of these positions.
        divergence: mean KL(first ‖ second) of the projected distributions, in nats.
        divergence_back: mean KL(second ‖ first).
        same_top: share of the positions where both have the same likeliest target token.
    """

    first: str
    second: str
    num_positions: int
    divergence: float | None
    divergence_back: float | None
    same_top: float | None


class Forecast(Frozen):
    """A forecast over one split.

    Attributes:
        recipe: the fusion that was forecast; its strategy and granularity are those of `growth`
            and `subsets`.
        num_positions: target tokens of the split.
        num_predicted: target tokens with a next token in their document.
        num_bytes: bytes that these next tokens stand for.
        common: share of the predicted positions that every source may supervise.
        sources: in the recipe's order.
        agreements: of every two sources.
        strategies: of all sources together.
        growth: of 1, 2, … all sources; each adds the source that lowers `common_bits_per_byte`
            most, which shows the value of another source.
        subsets: of every choice of sources, smallest first; empty for more than four sources.
        left_out: of learned strategies that were not measured, why.
        verdict: whether fusion is expected to pay, and with what.
    """

    recipe: Recipe
    num_positions: int
    num_predicted: int
    num_bytes: int
    common: float
    sources: tuple[SourceForecast, ...]
    agreements: tuple[Agreement, ...]
    strategies: tuple[MixtureForecast, ...]
    growth: tuple[MixtureForecast, ...]
    subsets: tuple[MixtureForecast, ...]
    left_out: str | None = None
    verdict: Verdict

    def __repr__(self) -> str:
        """The sources and their best mixture; see `tables` for all figures."""
        best = min(
            (row for row in self.strategies if row.common_bits_per_byte is not None),
            key=lambda row: row.common_bits_per_byte or 0.0,
            default=None,
        )
        rows = [(source.cache, source.alone) for source in self.sources]
        rows += [(best.strategy, best)] if best is not None else []
        figures = ", ".join(
            f"{name} {row.common_bits_per_byte:.4f}"
            for name, row in rows
            if row.common_bits_per_byte is not None
        )
        return (
            f"Forecast({self.num_predicted:,} target tokens of split {self.recipe.split!r}, "
            f"{self.common:.1%} common to all sources; bits per byte on the common: {figures})"
        )

    __str__ = __repr__  # Pydantic's shows every field.

    def notes(self) -> Iterator[str]:
        """What people must know with the tables, and the verdict."""
        yield (
            "Compare rows by the column common; each row's other columns are over the positions "
            "that it covers. docs/fusion.md defines every number and says what a forecast cannot "
            "show."
        )
        if self.left_out is not None:
            yield f"Not measured: {self.left_out}"
        yield str(self.verdict)

    def _repr_html_(self) -> str:
        return tables_html(self.tables(), self.notes())

    def tables(self) -> Iterator[ShownTable]:
        """The forecast as tables for people: title, column names, rows."""
        yield ShownTable(
            f"Sources on {self.num_predicted:,} target tokens of split {self.recipe.split!r}; "
            f"{percent(self.common)} are common to all",
            [
                *["source", "own bits/byte", "bits/byte", "stored", "common", "nats/token"],
                *["documents won", "by", "tokens won", "by bits"],
            ],
            [
                [
                    source.cache,
                    decimal(source.own_bits_per_byte),
                    decimal(source.alone.bits_per_byte),
                    decimal(source.alone.stored_bits_per_byte),
                    decimal(source.alone.common_bits_per_byte),
                    decimal(source.alone.nats_per_token),
                    percent(source.documents_won),
                    decimal(source.document_margin),
                    percent(source.tokens_won),
                    decimal(source.token_margin),
                ]
                for source in self.sources
            ],
        )
        is_masked = any(source.positions_masked for source in self.sources)
        yield ShownTable(
            "Share of each source that reaches the target",
            [
                *["source", "span", "inside", "mined", "unaligned", *(["masked"] * is_masked)],
                *["unmapped", "tail", "label in tail", "label guessed"],
            ],
            [
                [
                    source.cache,
                    percent(source.positions_span),
                    percent(source.positions_inside),
                    percent(source.positions_mined),
                    percent(source.unaligned),
                    *([percent(source.positions_masked)] * is_masked),
                    percent(source.unmapped_mass),
                    percent(source.tail_mass),
                    percent(source.alone.label_in_tail),
                    percent(source.label_guessed),
                ]
                for source in self.sources
            ],
        )
        if self.strategies:
            yield _mixture_table("Strategies over all sources", self.strategies)
        if len(self.growth) > 1:
            yield _mixture_table("Sources added one at a time", self.growth)
        if self.agreements:
            yield ShownTable(
                "Agreement between sources",
                ["sources", "positions", "KL nats", "KL back", "same top token"],
                [
                    [
                        f"{pair.first} · {pair.second}",
                        f"{pair.num_positions:,}",
                        decimal(pair.divergence),
                        decimal(pair.divergence_back),
                        percent(pair.same_top),
                    ]
                    for pair in self.agreements
                ],
            )


def _mixture_table(title: str, mixtures: tuple[MixtureForecast, ...]) -> ShownTable:
    return ShownTable(
        title,
        [
            *["strategy", "by", "sees", "sources", "covered", "bits/byte", "stored", "common"],
            *["nats/token", "tail", "label in tail"],
        ],
        [
            [
                mixture.strategy,
                mixture.granularity or mixture.fit_by or "-",
                "label: oracle" if mixture.sees == "label" else mixture.sees,
                " + ".join(mixture.sources),
                percent(mixture.covered),
                decimal(mixture.bits_per_byte),
                decimal(mixture.stored_bits_per_byte),
                decimal(mixture.common_bits_per_byte),
                decimal(mixture.nats_per_token),
                percent(mixture.tail_mass),
                percent(mixture.label_in_tail),
            ]
            for mixture in mixtures
        ],
    )
