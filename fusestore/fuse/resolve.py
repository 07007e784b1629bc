"""From a recipe and a store to a checked `Fusion`.

A recipe is completed with the corpus, the whole digest of the target's tokenizer, and the name of
every alignment. So two ways to write one recipe have one digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fusestore.align.manifest import AlignmentManifest
from fusestore.align.settings import alignment_name
from fusestore.align.stored import Alignment, open_alignment
from fusestore.align.target_tokens import shares_tokens, target_tokens
from fusestore.align.tokens_digest import tokens_digest
from fusestore.align.vocabulary.first_tokens import first_tokens
from fusestore.align.vocabulary.stored_map import load_vocabulary_map, vocabulary_map_folder
from fusestore.cache.reader import Cache, open_cache
from fusestore.corpus.corpus import Corpus, open_corpus, supervision_of
from fusestore.corpus.tokenize import StoredTokens, find_corpus_tokens
from fusestore.errors import IncompatibleError, InvalidInputError, NotFoundError
from fusestore.fuse.choices import LEARNED, FitBy, FitMethod
from fusestore.fuse.fits.domains import domain_of, fitted_to
from fusestore.fuse.fits.find_fits import check_fit, find_fits, fingerprint_of, load_fit
from fusestore.fuse.fits.manifest import Fitted
from fusestore.fuse.fusion import Fusion, prepare
from fusestore.fuse.inputs import SourceInput
from fusestore.fuse.manifest import FusionPlan
from fusestore.fuse.recipe import Recipe, RecipeSource
from fusestore.models.model import Model
from fusestore.models.target import Target
from fusestore.progress import Reporter, SilentReporter
from fusestore.store.findings import DAMAGE
from fusestore.store.inventory import name_by_digest
from fusestore.store.layout import Store, is_name
from fusestore.tokenizers.chat_encoder import TemplateIdentity
from fusestore.tokenizers.tokenizer import Tokenizer
from fusestore.tokenizers.vocabulary_table import load_vocabulary, load_vocabulary_manifest


def find_inputs(
    store: Store,
    recipe: Recipe,
    target: Model | Tokenizer | Target | None = None,
    *,
    plan: FusionPlan | None = None,
    save_fit: bool = True,
    reporter: Reporter | None = None,
) -> Fusion:
    """The inputs that a recipe names, found in the store and checked to belong together.

    Reads manifests, offsets and maps; tokens and rows are read when they are needed. The recipe of
    the result is whole.

    Args:
        store: holds corpus, caches, maps and alignments.
        recipe: the recipe to complete.
        target: the open target; by default found by the recipe's `target`.
        plan: of an unfinished fusion: selects the target's tokens.
        save_fit: whether the fit of a learned strategy is stored, if it has to be made.
        reporter: receives its progress.

    Raises:
        NotFoundError: a cache, an alignment or the fit is missing; the message names it and what
            makes it.
        IncompatibleError: caches of different corpora or documents, or maps for other tokenizers.
        InvalidInputError: the recipe names no target and its sources have several tokenizers, or
            it fits several alignments or several tokenizations.
    """
    if plan is not None and (recipe_now := with_names_now(store, plan)) != recipe:
        # The plan keeps the names that its inputs had; their digests say which they are.
        now = plan.model_copy(update={"recipe": recipe_now})
        return _called(find_inputs(store, recipe_now, target, plan=now), recipe)
    caches = [open_cache(store, source.cache) for source in recipe.sources]
    for cache in caches:
        _check_tails(cache)
    _check_labels(recipe, caches)
    named = caches[0].fingerprint.corpus
    corpus = open_corpus(
        store, recipe.corpus or name_by_digest(store, "corpus", named.digest, named.name)
    )
    opened = _target_of(store, recipe, target, caches)
    target_cache = _target_cache(store, recipe)
    # A plan names every alignment, and its target's digest does not say which chat template.
    sources = (
        recipe.sources
        if plan is not None
        else tuple(
            _with_alignment(store, corpus, source, cache, recipe, opened)
            for source, cache in zip(recipe.sources, caches, strict=True)
        )
    )
    whole = recipe.model_copy(
        update={
            "corpus": corpus.name,
            "target": opened.digest,
            "target_cache": target_cache,
            "sources": sources,
        }
    )
    inputs = [
        _source_input(store, source, cache, whole, opened)
        for source, cache in zip(sources, caches, strict=True)
    ]
    target_input = None
    if target_cache is not None:
        cache = open_cache(store, target_cache)
        _check_tails(cache)
        source = RecipeSource(cache=target_cache)
        source = _with_alignment(store, corpus, source, cache, whole, opened)
        target_input = _source_input(store, source, cache, whole, opened)
    fitted = None
    if recipe.strategy in LEARNED:
        fitted = _fit_of(store, whole, opened, save_fit, reporter)
        basis = fitted.manifest.fingerprint
        whole = whole.model_copy(
            update={
                "fit": fitted.manifest.digest,
                "fit_split": basis.split,
                "fit_by": basis.by,
                "fit_temperature": basis.temperature,
            }
        )
    vocab_size = _vocab_size(store, opened)
    documents = corpus.split_documents(recipe.split)
    # Missing target tokens are written, so this comes after everything that can fail.
    tokens = None if plan is None else _tokens_of_plan(corpus, plan)
    if tokens is None:
        tokens = target_tokens(store, corpus, opened)
    if tokens.manifest.template is not None:
        for each in inputs:
            _check_template(corpus, each, tokens)
    return prepare(
        whole,
        [
            _with_end_of_turn(each, cache.fingerprint.template, tokens.manifest.template)
            for each, cache in zip(inputs, caches, strict=True)
        ],
        target_tokens=tokens,
        tokens_digest=tokens.digest,
        documents=documents,
        vocab_size=vocab_size,
        corpus_digest=corpus.digest,
        target_cache=target_input,
        fitted=fitted,
        supervision=supervision_of(corpus),
    )


def with_names_now(store: Store, plan: FusionPlan) -> Recipe:
    """The recipe of a plan with the names that its inputs have in the store now.

    An input that the store does not hold keeps its name.
    """

    def now(kind: str, digest: str | None, name: str | None) -> str | None:
        if digest is None or name is None:
            return name
        return name_by_digest(store, kind, digest, name)

    recipe = plan.recipe
    sources = tuple(
        source.model_copy(
            update={
                "cache": now("cache", digests.cache_digest, source.cache),
                "alignment": now("alignment", digests.alignment_digest, source.alignment),
            }
        )
        for source, digests in zip(recipe.sources, plan.inputs, strict=True)
    )
    return recipe.model_copy(
        update={
            "corpus": now("corpus", plan.corpus_digest, recipe.corpus),
            "target_cache": now("cache", plan.target_cache_digest, recipe.target_cache),
            "sources": sources,
        }
    )


def _called(fusion: Fusion, recipe: Recipe) -> Fusion:
    """The fusion with a recipe that differs from its own in names of inputs only."""
    target_cache = fusion.target_cache
    if target_cache is not None:
        target_cache = replace(target_cache, name=str(recipe.target_cache))
    return replace(
        fusion,
        recipe=recipe,
        sources=tuple(
            replace(found, name=source.cache)
            for found, source in zip(fusion.sources, recipe.sources, strict=True)
        ),
        target_cache=target_cache,
    )


def find_fitted(
    store: Store,
    recipe: Recipe,
    wanted: Sequence[tuple[FitMethod, FitBy]],
    target: Model | Tokenizer | Target | None = None,
    *,
    save: bool = True,
    reporter: Reporter | None = None,
) -> list[Fitted]:
    """Learned strategies fitted to a recipe's `fit_split`; found in the store, or made.

    Args:
        store: holds what the recipe names.
        recipe: the recipe; its strategy and its split have no effect.
        wanted: learned strategies, and what their weights depend on.
        target: as for `find_inputs`.
        save: whether the store receives what is made.
        reporter: receives progress updates.

    Raises:
        As for `find_inputs`, for a split that cannot be fitted to as well.
    """
    unused = {"fit": None, "unaligned": "skip", "target_cache": None, "keep_label": None}
    plain = {"split": recipe.fit_split, "strategy": "uniform", "score": "bits_per_byte", **unused}
    fusion = find_inputs(store, recipe.model_copy(update=plain), target)
    corpus = open_corpus(store, str(fusion.recipe.corpus))
    models = _models_of(store, recipe)
    domains = [domain_of(source) for source in corpus.sources()]
    fingerprints = [
        fingerprint_of(recipe, fusion, models, method, by) for method, by in dict.fromkeys(wanted)
    ]
    reporter = reporter or SilentReporter()
    with reporter.stage(f"Fitting to {recipe.fit_split}", "tokens") as progress:
        fits = find_fits(store, fingerprints, fusion, domains, save=save, progress=progress)
    return [fitted_to(fit, domains) for fit in fits]


def _fit_of(
    store: Store, recipe: Recipe, target: Target, save: bool, reporter: Reporter | None
) -> Fitted:
    """The fit that a whole recipe names, or that of its learned strategy."""
    method: FitMethod = next(name for name in LEARNED if name == recipe.strategy)
    if recipe.fit is None:
        wanted = [(method, recipe.fit_by)]
        return find_fitted(store, recipe, wanted, target, save=save, reporter=reporter)[0]
    manifest = load_fit(store, recipe.fit)
    check_fit(manifest, recipe, _models_of(store, recipe), target.digest)
    sources = open_corpus(store, str(recipe.corpus)).sources()
    return fitted_to(manifest, [domain_of(source) for source in sources])


def _check_labels(recipe: Recipe, caches: Sequence[Cache]) -> None:
    """Refuse to compare scores of sources of which some do not give every next token.

    Unknown are above all unlikely tokens: without them a source looks better than it is.
    """
    if len(caches) == 1 and recipe.strategy not in LEARNED:
        return
    if recipe.strategy in ("uniform", "weighted", "single"):
        return
    for cache in caches:
        if not cache.fingerprint.known_labels:
            raise IncompatibleError(
                f"Strategy {recipe.strategy!r} compares how well each source predicts the text, "
                f"but cache {cache.location.name!r} was imported from rows that do not tell the "
                "probability of every next token. Choose strategy uniform, weighted or single, or "
                "capture the source."
            )


def _check_tails(cache: Cache) -> None:
    if cache.fingerprint.known_tail:
        return
    if cache.fingerprint.origin is not None:
        raise IncompatibleError(
            f"Cache {cache.location.name!r} was imported from rows that do not tell the mass "
            "outside the entries, and a fusion needs it. Import them again under another name "
            "with --unknown-tail renormalize, which takes the entries for the whole distribution."
        )
    raise IncompatibleError(
        f"Cache {cache.location.name!r} was captured by engine {cache.fingerprint.engine}, "
        "which does not tell the mass outside the entries. A fusion needs it: capture the "
        "source with an engine that does, such as transformers, vllm or sglang."
    )


def _models_of(store: Store, recipe: Recipe) -> list[str]:
    caches = [open_cache(store, source.cache) for source in recipe.sources]
    return [cache.fingerprint.model.spec_digest for cache in caches]


def _target_of(
    store: Store,
    recipe: Recipe,
    target: Model | Tokenizer | Target | None,
    caches: Sequence[Cache],
) -> Target:
    """The open target, that of the recipe, or the tokenizer that all sources share."""
    if target is not None:
        opened = Target.open(target, store=store)
        if recipe.target_digest and not opened.digest.startswith(recipe.target_digest):
            raise IncompatibleError(
                f"The recipe's target is tokenizer {recipe.target_digest[:16]}, but "
                f"{opened.name} has tokenizer {opened.digest[:16]}."
            )
        return opened
    if recipe.target_digest is not None:
        return Target.open(_whole_digest(store, recipe.target_digest), store=store)
    if recipe.target is not None:
        return Target.open(recipe.target, store=store)
    tokenizers: dict[str, list[str]] = {}
    for source, cache in zip(recipe.sources, caches, strict=True):
        tokenizers.setdefault(cache.fingerprint.tokenizer_digest, []).append(source.cache)
    if len(tokenizers) > 1:
        listed = "; ".join(
            f"{', '.join(names)}: {digest[:16]}" for digest, names in tokenizers.items()
        )
        raise InvalidInputError(
            f"The recipe names no target, and its sources have {len(tokenizers)} tokenizers "
            f"({listed}). Name the model that is trained on the result, as in target = "
            f'"{recipe.sources[0].cache}" or --target {recipe.sources[0].cache}.'
        )
    return Target.open(recipe.sources[0].cache, store=store)


def _whole_digest(store: Store, digest: str) -> str:
    """The whole digest of a tokenizer in the store, by its first 16 digits or more."""
    try:
        manifest = load_vocabulary_manifest(store, digest)
    except NotFoundError as error:
        names = ", ".join(store.names("vocabularies")) or "none"
        raise NotFoundError(
            f"{store.location} has no tokenizer {digest[:16]}, the recipe's target; it has "
            f"{names}. Align a cache to that target, or capture a cache with it."
        ) from error
    return manifest.fingerprint.tokenizer_digest


def _vocab_size(store: Store, target: Target) -> int:
    """Number of ids of the target's tokenizer, from the manifest of its vocabulary if stored."""
    try:
        return load_vocabulary_manifest(store, target.digest).num_tokens
    except DAMAGE:
        return len(target.vocabulary)


def _target_cache(store: Store, recipe: Recipe) -> str | None:
    """The target's own cache, for `unaligned = "target"`."""
    if recipe.unaligned != "target" or recipe.target_cache is not None:
        return recipe.target_cache
    name = recipe.target
    if name is not None and is_name(name) and (store.cache(name) / "manifest.json").exists():
        return name
    raise InvalidInputError(
        f"unaligned = 'target' needs the target's own distribution cache, but {name!r} is no cache "
        f'of {store.location}: name the target\'s cache, as in target_cache = "NAME".'
    )


def _tokens_of_plan(corpus: Corpus, plan: FusionPlan) -> StoredTokens | None:
    """The plan's target tokens; else other tokens of the target; else None.

    Other tokens give another plan, and the error then names what differs.
    """
    stored = find_corpus_tokens(corpus, plan.target_digest)
    return next(
        (tokens for tokens in stored if tokens.digest == plan.tokens_digest),
        stored[0] if stored else None,
    )


def _source_input(
    store: Store, source: RecipeSource, cache: Cache, recipe: Recipe, target: Target
) -> SourceInput:
    """The input of a source of a whole recipe."""
    name, target_digest = source.cache, str(recipe.target)
    fingerprint = cache.fingerprint
    plain = SourceInput(
        name=name,
        cache=cache,
        cache_digest=cache.digest,
        corpus_digest=fingerprint.corpus.digest,
        vocab_size=fingerprint.model.vocab_size,
        rule=fingerprint.rule,
        is_partial=fingerprint.is_partial,
    )
    if source.alignment is None:
        return plain
    method = recipe.vocabulary_method
    folder = vocabulary_map_folder(
        store, fingerprint.tokenizer_digest, target_digest, method, fingerprint.corpus.digest
    )
    try:
        alignment = open_alignment(store.alignment(source.alignment))
        vocabulary_map = load_vocabulary_map(folder)
    except NotFoundError as error:
        raise NotFoundError(
            f"Source {name!r} has other tokens than the target and is not aligned to it "
            f"({error}). Run `fusestore align {name} --target MODEL --name {source.alignment} "
            f"--method {recipe.alignment_method} --vocabulary {method}` first."
        ) from error
    _check_alignment(alignment, cache, target_digest, recipe.alignment_method, name)
    digests = {
        "source": (vocabulary_map.source_digest, fingerprint.tokenizer_digest),
        "target": (vocabulary_map.target_digest, target_digest),
    }
    for side, (actual, expected) in digests.items():
        if actual != expected:
            raise IncompatibleError(
                f"The vocabulary map at {folder} has {side} tokenizer {actual[:16]}, but "
                f"{name!r} needs a map for {expected[:16]}. Delete it and align again."
            )
    spelling = load_vocabulary(store, fingerprint.tokenizer_digest).spelling
    inside = "inside" in recipe.kinds
    return replace(
        plain,
        target_id=vocabulary_map.target_id,
        alignment=alignment,
        vocabulary_map_digest=vocabulary_map.digest,
        alignment_digest=alignment.manifest.digest,
        spelling=spelling,
        first_tokens=first_tokens(spelling, target.vocabulary) if inside else None,
    )


def _with_end_of_turn(
    source: SourceInput, template: TemplateIdentity | None, target: TemplateIdentity | None
) -> SourceInput:
    """The source, with its end of turn mapped to the target's: they may be spelled differently.

    A vocabulary map knows the tokenizers, but not their chat templates.
    """
    if source.target_id is None or template is None or target is None:
        return source
    mapped = source.target_id.copy()
    mapped[template.end_of_turn_id] = target.end_of_turn_id
    return replace(source, target_id=mapped)


def _check_template(corpus: Corpus, source: SourceInput, tokens: StoredTokens) -> None:
    """Check that an alignment is to the target's tokens by its own chat template.

    Raises:
        IncompatibleError: it is to those by another.
    """
    if not isinstance(source.alignment, Alignment):
        return
    if len(find_corpus_tokens(corpus, tokens.manifest.tokenizer_digest)) == 1:
        return
    name = source.alignment.location.name
    if source.alignment.manifest.fingerprint.target_tokens_digest != tokens_digest(tokens):
        raise IncompatibleError(
            f"Alignment {name!r} is to the target's tokenizer by another chat template. Run "
            f"`fusestore align {source.name} --target MODEL --name NAME` with the target's own "
            "model, and name that alignment in the recipe."
        )


def _with_alignment(
    store: Store,
    corpus: Corpus,
    source: RecipeSource,
    cache: Cache,
    recipe: Recipe,
    target: Target,
) -> RecipeSource:
    """The source with its alignment's name; None if its tokens are the target's own."""
    name = None
    if not shares_tokens(store, corpus, cache, target):
        name = source.alignment or _only_alignment(store, source.cache, recipe, target)
    return source.model_copy(update={"alignment": name})


def _only_alignment(store: Store, cache: str, recipe: Recipe, target: Target) -> str:
    """The name of the only alignment of a cache to the target by the recipe's method.

    One of this cache by its digest, whatever it is called; else one that is named after the cache.
    """
    digest = open_cache(store, cache).digest
    fitting, named_so = [], []
    for name in store.names("alignments"):
        begins = name.startswith(alignment_name(cache, ""))
        try:
            manifest = AlignmentManifest.load(store.alignment(name) / "manifest.json")
        except DAMAGE:
            # A damaged alignment of another cache is not this one's problem.
            if begins and (store.alignment(name) / "manifest.json").exists():
                raise
            continue
        found = manifest.fingerprint
        if (found.target_tokenizer_digest, found.method) == (
            target.digest,
            recipe.alignment_method,
        ):
            fitting += [name] if found.source_cache_digest == digest else []
            named_so += [name] if begins else []
    fitting = fitting or named_so
    if alignment_name(cache, target.name) in fitting:
        return alignment_name(cache, target.name)
    if len(fitting) > 1:
        raise InvalidInputError(
            f"Source {cache!r} has {len(fitting)} alignments to the target by method "
            f"{recipe.alignment_method}: {', '.join(fitting)}. Name one in the recipe, as in "
            f'alignment = "{fitting[0]}".'
        )
    by_template = "" if target.template is None else ", or another chat template,"
    if not fitting:
        raise NotFoundError(
            f"Source {cache!r} has another tokenizer{by_template} than the target and no alignment "
            "to it by "
            f"method {recipe.alignment_method}. Run `fusestore align {cache} --target MODEL "
            f"--method {recipe.alignment_method} --vocabulary {recipe.vocabulary_method}` first, "
            "with a --name of its own if the store has an alignment by another method."
        )
    return fitting[0]


def _check_alignment(
    alignment: Alignment, cache: Cache, target_digest: str, method: str, name: str
) -> None:
    """Check that an alignment is of this cache, to this target, by this method.

    Raises:
        IncompatibleError: it is not; the message names each difference.
    """
    fingerprint = alignment.manifest.fingerprint
    expected = {
        "source_cache_digest": cache.digest,
        "target_tokenizer_digest": target_digest,
        "method": method,
    }
    differing = [
        f"{key} is {getattr(fingerprint, key)[:16]}, expected {value[:16]}"
        for key, value in expected.items()
        if getattr(fingerprint, key) != value
    ]
    if differing:
        raise IncompatibleError(
            f"The alignment of {name!r} at {alignment.location} does not fit the recipe: "
            f"{'; '.join(differing)}. Name another alignment, or delete this one and run "
            f"`fusestore align {name}` again."
        )
