"""Fits in a store: found by what they were fitted on, or made and stored."""

from __future__ import annotations

from collections.abc import Sequence

from fusestore.errors import IncompatibleError, NotFoundError
from fusestore.fuse.choices import FitBy, FitMethod
from fusestore.fuse.fits.fitting import fit_strategies
from fusestore.fuse.fits.manifest import FitFingerprint, FitManifest, FitSource
from fusestore.fuse.fusion import Fusion
from fusestore.fuse.recipe import Recipe
from fusestore.progress import Progress, ignore_progress
from fusestore.storage.publish import remove_abandoned
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.fingerprints import write_fingerprint
from fusestore.store.layout import Store


def find_fits(
    store: Store,
    fingerprints: Sequence[FitFingerprint],
    fusion: Fusion,
    domains: Sequence[str],
    *,
    save: bool,
    progress: Progress = ignore_progress,
) -> list[FitManifest]:
    """The fits of these fingerprints; those that the store lacks are made.

    Args:
        store: the store.
        fingerprints: of the fits.
        fusion: the sources on the split to fit.
        domains: of every document of the corpus, for weights by domain.
        save: whether the store receives what is made.
        progress: receives the positions that were read.

    Raises:
        As for `fit_strategies`.
    """
    found = {_content(fit.fingerprint): fit for fit in _stored_fits(store)}
    missing = [each for each in fingerprints if _content(each) not in found]
    if missing:
        for fit in fit_strategies(fusion, missing, domains, progress):
            found[_content(fit.fingerprint)] = fit
            if save:
                save_fit(store, fit)
    return [found[_content(each)] for each in fingerprints]


def _content(fingerprint: FitFingerprint) -> str:
    """The digest of a fingerprint without names: artifacts may be renamed, digests stay."""
    sources = tuple(source.model_copy(update={"cache": ""}) for source in fingerprint.sources)
    return fingerprint.model_copy(update={"corpus": "", "sources": sources}).digest


def save_fit(store: Store, fit: FitManifest) -> None:
    """Write a fit; the same fit is written once."""
    folder = store.fit(fit.digest)
    write_fingerprint(folder, fit.fingerprint, "Fit")
    remove_abandoned(folder)
    fit.save(folder / MANIFEST_FILE)


def load_fit(store: Store, digest: str) -> FitManifest:
    """A stored fit by its digest or the first 16 digits.

    Raises:
        NotFoundError: the store has no such fit.
        CorruptionError: it is damaged.
    """
    try:
        fit = FitManifest.load(store.fit(digest) / MANIFEST_FILE)
    except NotFoundError as error:
        raise _unknown(store, digest) from error
    if not fit.digest.startswith(digest):
        raise _unknown(store, digest)
    return fit


def _unknown(store: Store, digest: str) -> NotFoundError:
    names = ", ".join(store.names("fits")) or "none"
    return NotFoundError(
        f"{store.location} has no fit {digest}; it has {names}. Leave `fit` out, and the strategy "
        "is fitted again."
    )


def check_fit(fit: FitManifest, recipe: Recipe, models: Sequence[str], target_digest: str) -> None:
    """Check that a fit that a recipe names is of its strategy, models and target.

    Raises:
        IncompatibleError: it is not; the message names each difference.
    """
    fitted = fit.fingerprint
    differing = []
    if fitted.method != recipe.strategy:
        differing.append(f"it is of strategy {fitted.method!r}, not {recipe.strategy!r}")
    if tuple(source.model_digest for source in fitted.sources) != tuple(models):
        of = ", ".join(source.cache for source in fitted.sources)
        asked = ", ".join(source.cache for source in recipe.sources)
        differing.append(f"it is of the models of {of}, in this order, not of {asked}")
    if fitted.target_digest != target_digest:
        differing.append(f"it is for target {fitted.target_digest[:16]}, not {target_digest[:16]}")
    if differing:
        raise IncompatibleError(
            f"Fit {fit.digest[:16]} does not fit the recipe: {'; '.join(differing)}. Leave `fit` "
            "out, and the strategy is fitted to the recipe's own sources."
        )


def fingerprint_of(
    recipe: Recipe, fusion: Fusion, models: Sequence[str], method: FitMethod, by: FitBy
) -> FitFingerprint:
    """What a fit depends on: the recipe's choices, and the sources on the split to fit."""
    sources = tuple(
        FitSource(
            cache=source.name,
            model_digest=model,
            cache_digest=source.cache_digest,
            vocabulary_map_digest=source.vocabulary_map_digest,
            alignment_digest=source.alignment_digest,
        )
        for source, model in zip(fusion.sources, models, strict=True)
    )
    return FitFingerprint(
        method=method,
        by=by if method == "em" else "global",
        temperature=method == "temperature" or recipe.fit_temperature,
        corpus=str(fusion.recipe.corpus),
        corpus_digest=fusion.corpus_digest,
        split=fusion.recipe.split,
        target_digest=str(fusion.recipe.target),
        tokens_digest=fusion.tokens_digest,
        kinds=recipe.kinds,
        sources=sources,
    )


def _stored_fits(store: Store) -> list[FitManifest]:
    files = [store.fit(name) / MANIFEST_FILE for name in store.names("fits") if name[0] != "."]
    fits = [FitManifest.load_if_sound(file) for file in files]
    return [fit for fit in fits if fit is not None]
