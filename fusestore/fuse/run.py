"""From a recipe, and a store that holds what it names, to a fused dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusestore.align.kinds import AlignmentMethod, MapMethod
from fusestore.align.manifest import AlignmentManifest
from fusestore.align.run import alignment_name
from fusestore.align.stored import Alignment, open_alignment
from fusestore.align.vocabulary.stored_map import load_vocabulary_map, vocabulary_map_folder
from fusestore.cache.reader import Cache, open_cache
from fusestore.corpus.build import Corpus, open_corpus
from fusestore.corpus.tokenize import StoredTokens, find_corpus_tokens, store_corpus_tokens
from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.forecast.analysis import GRANULARITIES, STRATEGIES, analyze_fusion
from fusestore.forecast.forecast import Forecast
from fusestore.fuse.folder import PLAN_FILE, FusedFolder, plan_of
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.manifest import FusedManifest, FusionPlan
from fusestore.fuse.materialize import materialize
from fusestore.fuse.recipe import Granularity, Recipe, RecipeSource
from fusestore.progress import Reporter, SilentReporter
from fusestore.storage.location import Location
from fusestore.storage.packages import user_cache_folder
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.workflows.fusion_config import FuseConfig


def fuse_caches(
    store: Store,
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    *,
    alignment_method: AlignmentMethod = "hybrid",
    vocabulary_method: MapMethod = "mined",
    reporter: Reporter | None = None,
) -> tuple[FusedManifest, bool]:
    """Fuse caches of the store into the fused dataset `config.name`, all of it.

    Returns:
        The fused dataset's manifest, and whether anything had to be computed.

    Raises:
        As `find_inputs` and `materialize` do.
    """
    recipe = recipe_of(
        store, config, target, corpus_name, alignment_method, vocabulary_method=vocabulary_method
    )
    folder = FusedFolder(store.fused(config.name), find_inputs(store, recipe, target))
    was_there = folder.manifest() is not None
    return fill(folder, reporter=reporter), not was_there


def fill(folder: FusedFolder, *, jobs: int = 1, reporter: Reporter | None = None) -> FusedManifest:
    """`materialize`, telling the reporter."""
    reporter = reporter or SilentReporter()
    with reporter.stage(f"Fusing {folder.location.name}", "tokens") as progress:
        return materialize(folder, jobs=jobs, progress=progress)


def forecast(
    store: Store,
    recipe: Recipe,
    target: Tokenizer | None = None,
    *,
    strategies: Sequence[str] = STRATEGIES,
    granularities: Sequence[Granularity] = GRANULARITIES,
    reporter: Reporter | None = None,
) -> Forecast:
    """What fusing a recipe would bring, from the caches alone; no fused dataset is begun.

    Arguments and errors as for `find_inputs` and `analyze_fusion`.
    """
    reporter = reporter or SilentReporter()
    fusion = find_inputs(store, recipe, target)
    with reporter.stage(f"Analysing {recipe.split}", "tokens") as progress:
        return analyze_fusion(
            fusion, strategies=strategies, granularities=granularities, progress=progress
        )


def place(
    store: Store,
    fusion: Fusion,
    name: str | None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> FusedFolder:
    """Where a fusion's dataset goes; nothing is written yet.

    Args:
        store: the store.
        fusion: what is fused.
        name: of the dataset in the store. Without one it is `recipe-` and the first digits of its
            digest, and that of a remote store is kept on this machine.
        cache_dir: where, by default fusestore's folder in the user's cache.
    """
    digest = plan_of(fusion).digest
    if name is None and not store.location.is_local:
        base = Path(cache_dir) if cache_dir is not None else user_cache_folder()
        location = Location.parse(base.expanduser().absolute() / "on_demand" / digest)
    else:
        location = store.fused(name or f"recipe-{digest[:16]}")
    return FusedFolder(location, fusion)


def reopen(store: Store, location: Location) -> FusedFolder:
    """A fused dataset that was begun, by what its folder says it is made of.

    Args:
        store: holds the inputs.
        location: the fused dataset's folder, anywhere.

    Raises:
        NotFoundError: nothing was begun there, or an input is gone.
        FingerprintMismatchError: an input is not what it was.
    """
    try:
        plan = FusionPlan.load(location / PLAN_FILE)
    except NotFoundError as error:
        raise NotFoundError(
            f"No fused dataset was begun at {location}. Begin one with `fusestore fuse` and a "
            "recipe, or --source and --target."
        ) from error
    folder = FusedFolder(location, find_inputs(store, plan.recipe, plan=plan))
    folder.begin()
    return folder


def is_current(store: Store, plan: FusionPlan) -> bool:
    """Whether caches and alignments are still those of the plan, by their manifests alone."""
    for source, digests in zip(plan.recipe.sources, plan.inputs, strict=True):
        if open_cache(store, source.cache).digest != digests.cache_digest:
            return False
        if source.alignment is not None:
            alignment = open_alignment(store.alignment(source.alignment))
            if alignment.manifest.digest != digests.alignment_digest:
                return False
    own = plan.recipe.target_cache
    return own is None or open_cache(store, own).digest == plan.target_cache_digest


def recipe_of(
    store: Store,
    config: FuseConfig,
    target: Tokenizer,
    corpus_name: str,
    alignment_method: AlignmentMethod,
    *,
    vocabulary_method: MapMethod,
) -> Recipe:
    """The recipe that a `[fuse]` table stands for; alignments go by their usual names."""
    weights: Sequence[float] = config.weights or [1.0] * len(config.sources)
    if len(weights) != len(config.sources):
        raise InvalidInputError(
            f"{len(weights)} weights for {len(config.sources)} sources; give one for each."
        )
    sources = []
    for name, weight in zip(config.sources, weights, strict=True):
        own = open_cache(store, name).fingerprint.tokenizer_digest == target.digest
        alignment = None if own else alignment_name(name, config.target)
        sources.append({"cache": name, "weight": weight, "alignment": alignment})
    return Recipe.parse(
        {
            "corpus": corpus_name,
            "split": config.split,
            "target": target.digest,
            "sources": sources,
            "strategy": config.strategy,
            "score": config.score,
            "granularity": config.granularity,
            "kinds": list(config.kinds),
            "unaligned": config.unaligned,
            "target_cache": config.target if config.unaligned == "target" else None,
            "top_k": config.top_k,
            "window_length": config.window_length,
            "packing": config.packing,
            "rows_per_shard": config.rows_per_shard,
            "alignment_method": alignment_method,
            "vocabulary_method": vocabulary_method,
        }
    )


def find_inputs(
    store: Store,
    recipe: Recipe,
    target: Tokenizer | None = None,
    *,
    plan: FusionPlan | None = None,
) -> Fusion:
    """Everything a recipe names, found in the store and checked to belong together.

    Reads manifests, offsets and maps; tokens and rows wait until they are needed. In the fusion's
    own recipe the target's digest is whole and every alignment has its name, so that two ways to
    write one recipe are one recipe.

    Args:
        store: holds corpus, caches, maps and alignments.
        recipe: what to do.
        target: the target's tokenizer. Needed only where the store does not hold the target's
            tokens of the corpus yet.
        plan: of a fusion that was begun: settles which tokens are meant.

    Raises:
        NotFoundError: a cache or an alignment is missing; the message names it and the command
            that makes it.
        IncompatibleError: caches of different corpora or documents, or maps for other tokenizers.
        InvalidInputError: the recipe fits several alignments or several tokenizations.
    """
    corpus = open_corpus(store, recipe.corpus)
    digest, vocab_size = _target_of(store, recipe, target)
    sources = [_source_input(store, source, recipe, digest) for source in recipe.sources]
    recipe = recipe.model_copy(
        update={"target": digest, "sources": tuple(source for source, _ in sources)}
    )
    target_cache = None
    if recipe.target_cache is not None:
        own = RecipeSource(cache=recipe.target_cache)
        target_cache = _source_input(store, own, recipe, digest)[1]
    # Last: the target's tokens are made if they are not there, and a mistake must write nothing.
    tokens = _target_tokens(store, corpus, digest, target, plan)
    return prepare(
        recipe,
        [source for _, source in sources],
        target_tokens=tokens,
        tokens_digest=tokens.digest,
        documents=corpus.split_documents(recipe.split),
        vocab_size=vocab_size,
        corpus_digest=corpus.digest,
        target_cache=target_cache,
    )


def _target_of(store: Store, recipe: Recipe, target: Tokenizer | None) -> tuple[str, int]:
    """The whole digest of the target's tokenizer, and how many tokens it has."""
    if target is not None:
        if not target.digest.startswith(recipe.target):
            raise IncompatibleError(
                f"The recipe's target is tokenizer {recipe.target[:16]}, but {target.name} has "
                f"tokenizer {target.digest[:16]}."
            )
        return target.digest, len(target)
    vocabulary = store.vocabulary(recipe.target)
    try:
        receipt = Receipt.load(vocabulary.parent / f"{recipe.target[:16]}.json")
    except NotFoundError as error:
        known = sorted({name.split(".")[0] for name in store.names("vocabularies")})
        raise NotFoundError(
            f"{store.location} knows no tokenizer {recipe.target[:16]}, the recipe's target; it "
            f"knows {', '.join(known) or 'none'}. Align a cache to that target, or capture one "
            "with it."
        ) from error
    if not receipt.fingerprint_digest.startswith(recipe.target):
        raise IncompatibleError(
            f"The recipe's target is tokenizer {recipe.target}, but the store's is "
            f"{receipt.fingerprint_digest}."
        )
    return receipt.fingerprint_digest, receipt.stop


def _target_tokens(
    store: Store,
    corpus: Corpus,
    digest: str,
    target: Tokenizer | None,
    plan: FusionPlan | None,
) -> StoredTokens:
    if target is not None:
        return store_corpus_tokens(store, corpus, target, target.adds_bos)
    found = find_corpus_tokens(corpus, digest)
    if plan is not None:
        # With other tokens the plans differ, and that is what the message should say.
        found = [tokens for tokens in found if tokens.digest == plan.tokens_digest] or found[:1]
    if not found:
        raise NotFoundError(
            f"Corpus {corpus.name!r} has no tokens of the target {digest[:16]} yet. Align a cache "
            "to that target with `fusestore align`, or give `fusestore fuse` its --target."
        )
    if len(found) > 1:
        raise InvalidInputError(
            f"Corpus {corpus.name!r} has tokens of the target {digest[:16]} with BOS and without. "
            "Give `fusestore fuse` its --target, whose own rule decides."
        )
    return found[0]


def _source_input(
    store: Store, source: RecipeSource, recipe: Recipe, target_digest: str
) -> tuple[RecipeSource, SourceInput]:
    """A source of the recipe, its alignment named, and what it stands for."""
    name = source.cache
    cache = open_cache(store, name)
    fingerprint = cache.fingerprint
    plain = SourceInput(
        name=name,
        cache=cache,
        cache_digest=cache.digest,
        corpus_digest=fingerprint.corpus.digest,
        vocab_size=fingerprint.model.vocab_size,
        rule=fingerprint.rule,
    )
    if fingerprint.tokenizer_digest == target_digest:
        return source.model_copy(update={"alignment": None}), plain
    method = recipe.vocabulary_method
    folder = vocabulary_map_folder(
        store, fingerprint.tokenizer_digest, target_digest, method, fingerprint.corpus.digest
    )
    chosen = source.alignment or _only_alignment(store, name, target_digest, recipe)
    try:
        alignment = open_alignment(store.alignment(chosen))
        vocabulary_map = load_vocabulary_map(folder)
    except NotFoundError as error:
        raise NotFoundError(
            f"Source {name!r} has another tokenizer than the target and is not aligned to it yet "
            f"({error}). Run `fusestore align {name} --target MODEL --target-name "
            f"{chosen.removeprefix(alignment_name(name, ''))} --method {recipe.alignment_method} "
            f"--vocabulary {method}` first."
        ) from error
    _check_alignment(alignment, cache, target_digest, recipe.alignment_method, name)
    found = {
        "source": (vocabulary_map.source_digest, fingerprint.tokenizer_digest),
        "target": (vocabulary_map.target_digest, target_digest),
    }
    for side, (there, here) in found.items():
        if there != here:
            raise IncompatibleError(
                f"The vocabulary map at {folder} has {side} tokenizer {there[:16]}, but "
                f"{name!r} needs one for {here[:16]}. Delete it and align again."
            )
    return source.model_copy(update={"alignment": chosen}), replace(
        plain,
        target_id=vocabulary_map.target_id,
        alignment=alignment,
        vocabulary_map_digest=vocabulary_map.digest,
        alignment_digest=alignment.manifest.digest,
    )


def _only_alignment(store: Store, cache: str, target_digest: str, recipe: Recipe) -> str:
    """The name of the one alignment of this cache to this target by the recipe's method."""
    prefix = alignment_name(cache, "")
    found = []
    for name in store.names("alignments"):
        if name.startswith(prefix):
            try:
                made = AlignmentManifest.load(store.alignment(name) / "manifest.json").fingerprint
            except NotFoundError:
                continue
            if (made.target_tokenizer_digest, made.method) == (
                target_digest,
                recipe.alignment_method,
            ):
                found.append(name)
    if len(found) > 1:
        raise InvalidInputError(
            f"Source {cache!r} has {len(found)} alignments to the target by method "
            f"{recipe.alignment_method}: {', '.join(found)}. Name one in the recipe, as in "
            f'alignment = "{found[0]}".'
        )
    if not found:
        raise NotFoundError(
            f"Source {cache!r} has another tokenizer than the target and no alignment to it by "
            f"method {recipe.alignment_method}. Run `fusestore align {cache} --target MODEL "
            f"--method {recipe.alignment_method} --vocabulary {recipe.vocabulary_method}` first, "
            "with a --name of its own if there is one by another method."
        )
    return found[0]


def _check_alignment(
    alignment: Alignment, cache: Cache, target_digest: str, method: str, name: str
) -> None:
    """The alignment is of this cache, to this target, by the method asked for.

    Raises:
        IncompatibleError: it is not.
    """
    made = alignment.manifest.fingerprint
    expected = {
        "source_cache_digest": cache.digest,
        "target_tokenizer_digest": target_digest,
        "method": method,
    }
    differing = [
        f"{key} is {getattr(made, key)[:16]} there, {value[:16]} here"
        for key, value in expected.items()
        if getattr(made, key) != value
    ]
    if differing:
        raise IncompatibleError(
            f"The alignment of {name!r} at {alignment.location} is of something else: "
            f"{'; '.join(differing)}. Name another one, or delete it and run "
            f"`fusestore align {name}` again."
        )
