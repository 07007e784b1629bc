"""Forecasts against a dense float64 reference, and against what materializing makes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusestore.errors import InvalidInputError
from fusestore.forecast import analysis
from fusestore.forecast.analysis import analyze_fusion
from fusestore.forecast.divergence import divergence, same_top
from fusestore.fuse import observation
from fusestore.fuse.fusion import prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.recipe import Recipe
from fusestore.fuse.scores import label_nats
from fusestore.fuse.shard import fuse_rows
from fusestore.fuse.strategies import register_strategy, strategy_names
from tests.helpers.fusion_reference import (
    TARGET,
    VOCAB,
    Reference,
    random_source,
    random_text,
    random_tokens,
)

IMPOSSIBLE = 1e6


def random_fusion(helpers, rng, *, num_sources, num_documents, **choices):
    """`(fusion, reference)` of random sources, or None when the split has no tokens."""
    texts = random_text(rng, num_documents)
    target = random_tokens(helpers, rng, texts, TARGET, bos=bool(rng.integers(2)))
    documents = np.sort(rng.permutation(num_documents)[: int(rng.integers(1, num_documents + 1))])
    if target.take(documents).num_tokens == 0:
        return None
    sources = [
        random_source(helpers, rng, f"s{index}", texts, target, identity=rng.random() < 0.4)
        for index in range(num_sources)
    ]
    weights = rng.random(num_sources) + 0.1 if choices["strategy"] == "weighted" else [1.0] * 9
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "sources": [
                {"cache": source.name, "weight": float(weight)}
                for source, weight in zip(sources, weights, strict=False)
            ],
            **choices,
        }
    )
    fusion = prepare(
        recipe,
        sources,
        target_tokens=target,
        documents=documents,
        vocab_size=VOCAB,
        corpus_digest="corpus",
        tokens_digest="t",
    )
    return fusion, Reference(helpers, recipe, sources, target, documents)


class Dense:
    """The definitions of docs/fusion.md, one position at a time on dense rows."""

    def __init__(self, reference):
        self.reference = reference
        self.sources = reference.sources
        target = reference.target
        self.positions = []
        for index, (document, position) in enumerate(reference.stream):
            ids, ends = target.document(document)
            if position + 1 < len(ids):
                size = int(ends[position + 1]) - int(ends[position])
                self.positions.append((index, document, position, int(ids[position + 1]), size))

    def pair(self, source, document, position):
        return self.reference.pair(source, document, position)

    def common(self, entry):
        _, document, position, _, _ = entry
        return all(self.pair(source, document, position) for source in self.sources)

    def label_probability(self, source, document, position):
        """(probability before any cut, whether it is exact)."""
        exact = self.reference.label(source, document, position)
        if exact is not None:
            return exact, True
        pair = self.pair(source, document, position)
        label = self.reference.target.document(document)[0][position + 1]
        dense = self.reference.distribution(source, pair)
        others = VOCAB - (dense[:VOCAB] > 0).sum()
        return (dense[label] or (dense[VOCAB] / others if others else 0.0)), False

    def spread(self, source, pair):
        """Dense [VOCAB]: the projected row with its tail spread evenly over what it lacks."""
        dense = self.reference.distribution(source, pair)
        lacking = dense[:VOCAB] == 0
        return dense[:VOCAB] + lacking * dense[VOCAB] / max(1, lacking.sum())

    def weights(self, name, granularity, members, index):
        """The strategy's weights over the members at a position of the stream."""
        recipe, reference = self.reference.recipe, self.reference
        chosen = [recipe.sources[member] for member in members]
        asked = recipe.model_copy(
            update={"strategy": name, "granularity": granularity, "sources": tuple(chosen)}
        )
        reference.recipe = asked
        try:
            scores = [reference.score(self.sources[member], index) for member in members]
            weights = reference.weights(scores)
        finally:
            reference.recipe = recipe
        document, position = reference.stream[index]
        weights = [
            weight if self.pair(self.sources[member], document, position) else 0.0
            for member, weight in zip(members, weights, strict=True)
        ]
        total = sum(weights)
        return [weight / total if total else 0.0 for weight in weights]

    def mixture(self, name, granularity, members):
        """The figures of `MixtureForecast`, by name."""
        nats = common_nats = size = common_size = covered = 0
        for entry in self.positions:
            index, document, position, _, num_bytes = entry
            weights = self.weights(name, granularity, members, index)
            if not sum(weights):
                continue
            probability = 0.0
            for member, weight in zip(members, weights, strict=True):
                if weight:
                    value, _ = self.label_probability(self.sources[member], document, position)
                    probability += weight * value
            spent = min(-math.log(probability), IMPOSSIBLE) if probability > 0 else IMPOSSIBLE
            covered += 1
            nats += spent
            size += num_bytes
            if self.common(entry):
                common_nats += spent
                common_size += num_bytes
        return {
            "covered": covered / len(self.positions) if self.positions else 0.0,
            "nats_per_token": nats / covered if covered else None,
            "bits_per_byte": nats / math.log(2) / size if size else None,
            "common_bits_per_byte": common_nats / math.log(2) / common_size
            if common_size
            else None,
        }


def close(got, expected, rel=2e-5):
    if expected is None:
        assert got is None
    else:
        assert got == pytest.approx(expected, rel=rel, abs=1e-6)


CHOICES = {
    "strategy": st.sampled_from(["mince", "avgce", "packllm", "weighted", "uniform"]),
    "score": st.sampled_from(["bits_per_byte", "aligned_ce", "token_ce"]),
    "granularity": st.sampled_from(["document", "window", "token"]),
    "kinds": st.sampled_from([["span"], ["mined"], ["span", "inside"], ["span", "mined"]]),
    "keep_label": st.booleans(),
    "min_probability": st.sampled_from([None, 0.01, 0.2, 0.9]),
    "window_length": st.integers(1, 8),
    "top_k": st.integers(1, VOCAB),
}


@settings(max_examples=250, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 3),
    num_documents=st.integers(1, 5),
    chunk_rows=st.integers(1, 12),
    **CHOICES,
)
def test_mixtures_equal_the_dense_reference_however_the_split_is_divided(
    helpers, seed, chunk_rows, **choices
):
    rng = np.random.default_rng(seed)
    made = random_fusion(helpers, rng, **choices)
    if made is None:
        return
    fusion, reference = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observation, "CHUNK_ROWS", chunk_rows)
        forecast = analyze_fusion(
            fusion, strategies=["mince", "uniform"], granularities=["document"]
        )
    dense = Dense(reference)
    names = [source.name for source in fusion.sources]
    assert forecast.num_positions == len(reference.stream)
    assert forecast.num_predicted == len(dense.positions)
    assert forecast.num_bytes == sum(entry[-1] for entry in dense.positions)
    common = sum(dense.common(entry) for entry in dense.positions)
    close(forecast.common, common / len(dense.positions) if dense.positions else 0.0)
    told = [*forecast.strategies, *forecast.subsets, *forecast.growth]
    assert len(forecast.subsets) == 2 ** len(names) - 1
    for mixture in told:
        members = tuple(names.index(name) for name in mixture.sources)
        expected = dense.mixture(mixture.strategy, mixture.granularity or "document", members)
        for name, value in expected.items():
            close(getattr(mixture, name), value)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(1, 3),
    num_documents=st.integers(1, 6),
    chunk_rows=st.integers(1, 12),
    **CHOICES,
)
def test_stored_figures_are_those_of_the_materialized_rows(helpers, seed, chunk_rows, **choices):
    """The forecast's own mixing against `fuse_rows` of the recipe it stands for."""
    made = random_fusion(helpers, np.random.default_rng(seed), **choices)
    if made is None:
        return
    fusion, _ = made
    recipe = fusion.recipe
    if len(fusion.sources) == 1:
        recipe = recipe.model_copy(update={"strategy": "single"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observation, "CHUNK_ROWS", chunk_rows)
        forecast = analyze_fusion(fusion, strategies=[], granularities=[])
    [mixture] = forecast.strategies or [forecast.sources[0].alone]
    assert mixture.strategy == recipe.strategy
    assert mixture.sources == tuple(source.name for source in fusion.sources)

    rows, totals = fuse_rows(fusion, 0, fusion.num_tokens)
    covered = (rows.kind > 0) & (rows.next_ids >= 0)
    nats = label_nats(
        rows.ids[covered],
        rows.logprobs[covered],
        rows.tail[covered],
        rows.next_ids[covered],
        fusion.vocab_size,
    )
    ends = fusion.read(0, len(fusion.documents)).end_offsets
    sizes = np.diff(ends, append=0)[covered]
    predicted = int((rows.next_ids >= 0).sum())
    close(mixture.covered, covered.sum() / predicted if predicted else 0.0)
    close(
        mixture.stored_bits_per_byte,
        nats.sum() / math.log(2) / sizes.sum() if sizes.sum() else None,
    )
    kept = (rows.ids == rows.next_ids[:, None]) & np.isfinite(rows.logprobs)
    count = int(covered.sum())
    close(mixture.label_in_tail, (~kept[covered].any(axis=1)).mean() if count else None)
    close(mixture.tail_mass, np.exp(np.float64(rows.tail[covered])).mean() if count else None)
    for source, total in zip(forecast.sources, totals, strict=True):
        num_tokens = fusion.num_tokens
        assert source.positions_span == total.positions_span / num_tokens
        assert source.positions_inside == total.positions_inside / num_tokens
        assert source.positions_mined == total.positions_mined / num_tokens
        assert source.documents == total.documents
        if total.num_bytes:
            close(source.own_bits_per_byte, total.nats / math.log(2) / total.num_bytes)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_sources=st.integers(2, 3),
    num_documents=st.integers(1, 5),
    **CHOICES,
)
def test_wins_losses_and_agreement_equal_the_dense_reference(helpers, seed, **choices):
    made = random_fusion(helpers, np.random.default_rng(seed), **choices)
    if made is None:
        return
    fusion, reference = made
    forecast = analyze_fusion(fusion, strategies=[], granularities=[])
    dense = Dense(reference)
    sources = reference.sources
    documents = [d for d in reference.documents if len(reference.target.document(int(d))[0])]
    scores = np.array([[reference.document_score(s, int(d)) for s in sources] for d in documents])
    labels = []
    for entry in filter(dense.common, dense.positions):
        _, document, position, _, _ = entry
        found = [dense.label_probability(source, document, position)[0] for source in sources]
        labels.append([min(-math.log(p), IMPOSSIBLE) if p > 0 else IMPOSSIBLE for p in found])
    for index, source in enumerate(forecast.sources):
        won, margins = wins(scores, index)
        close(source.documents_won, won / len(documents))
        close(source.document_margin, np.mean(margins) if margins else None)
        won, margins = wins(np.array(labels), index)
        close(source.tokens_won, won / len(labels) if labels else None)
        lost, tails, guesses = [], [], []
        for document, position in reference.stream:
            pair = dense.pair(sources[index], document, position)
            if pair:
                whole, unmapped = reference.projected(sources[index], pair)
                tails.append(whole[VOCAB] - unmapped)
                lost.append(unmapped)
        for _, document, position, _, _ in dense.positions:
            if dense.pair(sources[index], document, position):
                exact = dense.label_probability(sources[index], document, position)[1]
                guesses.append(not exact)
        close(source.tail_mass, np.mean(tails) if tails else None, rel=1e-4)
        close(source.unmapped_mass, np.mean(lost) if lost else None, rel=1e-4)
        close(source.label_guessed, np.mean(guesses) if guesses else None)
    pairs = list(itertools.combinations(range(len(sources)), 2))
    assert [(pair.first, pair.second) for pair in forecast.agreements] == [
        (f"s{one}", f"s{other}") for one, other in pairs
    ]
    for (one, other), told in zip(pairs, forecast.agreements, strict=True):
        both = [
            (dense.pair(sources[one], *at), dense.pair(sources[other], *at))
            for at in reference.stream
        ]
        rows = [
            (dense.spread(sources[one], a), dense.spread(sources[other], b))
            for a, b in both
            if a and b
        ]
        assert told.num_positions == len(rows)
        close(told.divergence, np.mean([kl(p, q) for p, q in rows]) if rows else None, rel=1e-4)
        close(
            told.divergence_back, np.mean([kl(q, p) for p, q in rows]) if rows else None, rel=1e-4
        )
        assert (told.same_top is None) == (not rows)


def kl(p, q):
    """KL(p ‖ q) of dense probabilities; a token impossible in q has log-probability −10⁶."""
    return sum(
        a * (math.log(a) - (max(math.log(b), -IMPOSSIBLE) if b > 0 else -IMPOSSIBLE))
        for a, b in zip(p, q, strict=True)
        if a > 0
    )


def wins(scores, index):
    """(how often a column is the lowest, first of equals; by how much, where another is finite)."""
    won, margins = 0, []
    for row in scores:
        present = [i for i, value in enumerate(row) if not np.isnan(value)]
        if not present or min(present, key=lambda i: (min(row[i], 1e300), i)) != index:
            continue
        won += 1
        others = [row[i] for i in present if i != index and np.isfinite(row[i])]
        if others and np.isfinite(row[index]):
            margins.append(min(others) - row[index])
    return won, margins


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    vocab_size=st.integers(6, 9),
)
def test_divergence_equals_the_dense_one_with_even_tails(helpers, seed, widths, vocab_size):
    rng = np.random.default_rng(seed)
    sides = []
    for width in widths:
        rows = helpers.random_rows(rng, 4, width, vocab_size, [])
        spread = []
        for row in range(4):
            dense = np.full(vocab_size, -np.inf)
            kept = np.isfinite(rows.logprobs[row])
            dense[rows.ids[row, kept]] = rows.logprobs[row, kept]
            left = vocab_size - kept.sum()
            if left:
                rest = np.setdiff1d(np.arange(vocab_size), rows.ids[row, kept])
                dense[rest] = np.float64(rows.tail[row]) - np.log(left)
            spread.append(dense)
        sides.append(((rows.ids, rows.logprobs, rows.tail), spread))
    (one, p), (other, q) = sides
    expected = [
        sum(
            math.exp(a) * (a - max(b, -IMPOSSIBLE)) for a, b in zip(x, y, strict=True) if a > -1e300
        )
        for x, y in zip(p, q, strict=True)
    ]
    got = divergence(one, other, vocab_size)
    np.testing.assert_allclose(got, np.maximum(expected, 0.0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(divergence(one, one, vocab_size), 0.0, atol=1e-9)
    tops = [a[0] == b[0] for a, b in zip(one[0], other[0], strict=True)]
    there = np.isfinite(one[1][:, 0]) & np.isfinite(other[1][:, 0])
    assert same_top(one, other).tolist() == (np.array(tops) & there).tolist()


def five_sources(helpers):
    rng = np.random.default_rng(7)
    while True:
        made = random_fusion(
            helpers,
            rng,
            num_sources=5,
            num_documents=6,
            strategy="uniform",
            kinds=["span", "mined"],
            top_k=3,
        )
        if made is not None and made[0].num_tokens > 15:
            return made[0]


def test_five_sources_grow_greedily_as_all_subsets_would(helpers, monkeypatch):
    fusion = five_sources(helpers)
    seen = []
    greedy = analyze_fusion(fusion, progress=lambda done, total: seen.append((done, total)))
    assert greedy.subsets == ()
    assert seen[-1][0] == seen[-1][1] == 4 * fusion.num_tokens
    monkeypatch.setattr(analysis, "MAX_SOURCES_FOR_SUBSETS", 5)
    exhaustive = analyze_fusion(fusion)
    assert len(exhaustive.subsets) == 31
    assert exhaustive.growth == greedy.growth
    by_sources = {mixture.sources: mixture.common_bits_per_byte for mixture in exhaustive.subsets}
    assert [len(mixture.sources) for mixture in greedy.growth] == [1, 2, 3, 4, 5]
    for before, after in itertools.pairwise(greedy.growth):
        reachable = {s: bits for s, bits in by_sources.items() if set(before.sources) < set(s)}
        reachable = {s: b for s, b in reachable.items() if len(s) == len(after.sources)}
        assert after.common_bits_per_byte == min(reachable.values())


def test_a_strategy_of_ones_own_is_forecast_too(helpers):
    name = "worst_in_this_test"
    if name not in strategy_names():

        @register_strategy(name)
        def worst(scores, fixed_weights):
            return (scores == np.fmax.reduce(scores, axis=1, keepdims=True)).astype(float)

    forecast = analyze_fusion(five_sources(helpers), strategies=[name], granularities=["window"])
    assert [(m.strategy, m.granularity) for m in forecast.strategies] == [
        (name, "window"),
        (name, "document"),
        ("uniform", None),
    ]


def test_what_cannot_be_asked_for(helpers):
    fusion = five_sources(helpers)
    with pytest.raises(InvalidInputError, match=r"'maxce'.*mince"):
        analyze_fusion(fusion, strategies=["maxce"])
    with pytest.raises(InvalidInputError, match="one source"):
        analyze_fusion(fusion, strategies=["single"])


def test_a_source_that_covers_nothing_has_no_figures(helpers):
    tokens = helpers.table([[(0, 1), (1, 2), (2, 3)]])
    rows = helpers.rows([{1: 0.5}, {2: 0.5}, {3: 1.0}], 1, [-1.0, -2.0, np.nan])
    nowhere = helpers.alignment([(np.full(3, -1, np.int32), np.zeros(3, np.uint8))])
    sources = [
        SourceInput("own", helpers.cache(tokens, rows), "d", "corpus"),
        SourceInput(
            "lost",
            helpers.cache(tokens, rows),
            "d",
            "corpus",
            target_id=np.arange(4, dtype=np.int32),
            alignment=nowhere,
        ),
    ]
    recipe = Recipe.parse(
        {
            "corpus": "c",
            "split": "s",
            "target": "t",
            "top_k": 1,
            "sources": [{"cache": "own"}, {"cache": "lost"}],
        }
    )
    fusion = prepare(
        recipe,
        sources,
        target_tokens=tokens,
        documents=np.array([0]),
        vocab_size=4,
        corpus_digest="corpus",
        tokens_digest="t",
    )
    forecast = analyze_fusion(fusion)
    own, lost = forecast.sources
    assert own.alone.bits_per_byte == pytest.approx(3.0 / math.log(2) / 2)
    assert own.alone.nats_per_token == pytest.approx(1.5)
    assert (lost.alone.covered, lost.alone.bits_per_byte, lost.tail_mass) == (0.0, None, None)
    assert forecast.common == 0.0
    assert own.alone.common_bits_per_byte is None
    assert forecast.agreements[0].divergence is None
    assert all(
        "nan" not in cell for _, _, rows in forecast.tables() for row in rows for cell in row
    )
