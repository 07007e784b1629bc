"""`Store`: everything that the command line does, as the verbs of an open store.

Each verb is a thin call of the function that the command of its name calls, and takes names of
artifacts or their handles. A verb that makes an artifact returns its handle; what is there already
is returned as it is. `fusestore.stages` has the same functions with a `StageResult`, which also
tells whether the artifact was created.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusestore import stages
from fusestore.contents import StoreContents
from fusestore.models.precision import PrecisionSetting
from fusestore.storage.location import Location
from fusestore.store import layout

if TYPE_CHECKING:
    from fusestore.align.settings import AlignSettings
    from fusestore.align.stored import Alignment
    from fusestore.cache.reader import Cache
    from fusestore.capture.settings import CaptureSettings
    from fusestore.corpus.corpus import Corpus
    from fusestore.corpus.settings import CorpusSettings
    from fusestore.data.dataset import FusedDataset
    from fusestore.data.fused import Fused
    from fusestore.data.mixture import FusedMixture
    from fusestore.forecast.forecast import Forecast
    from fusestore.forecast.settings import ForecastSettings
    from fusestore.fuse.recipe import Recipe
    from fusestore.interop.export import Exported
    from fusestore.interop.settings import ImportSettings
    from fusestore.merge.manifest import MergedModel
    from fusestore.merge.settings import MergeSettings
    from fusestore.models.model import Model
    from fusestore.models.target import Target
    from fusestore.progress import Reporter
    from fusestore.report.page.content import StoreReport
    from fusestore.report.page.settings import ReportSettings
    from fusestore.tokenizers.tokenizer import Tokenizer
    from fusestore.train.manifest import TrainedModel
    from fusestore.train.settings import TrainSettings
    from fusestore.workflows.comparison import Comparison


def open_store(
    target: str | os.PathLike[str] | Location | layout.Store,
    storage_options: Mapping[str, object] | None = None,
) -> Store:
    """The store in a folder or at a URL. Nothing is read; a store that is not there is empty.

    Args:
        target: a folder, a URL such as `s3://bucket/my.store`, or an open store.
        storage_options: of the URL's storage, such as `endpoint_url`; see `storage.options`.

    Raises:
        InvalidInputError: the URL cannot be understood.
    """
    if isinstance(target, layout.Store):
        return Store(target.location)
    return Store(Location.parse(target, storage_options))


class Store(StoreContents):
    """A store and its verbs; made by `open_store`.

    Every verb raises `FusestoreError`s only: `NotFoundError` for a name that is not there,
    `InvalidInputError` and `IncompatibleError` for arguments that do not fit,
    `FingerprintMismatchError` or `AlreadyExistsError` where another artifact has the name,
    `CorruptionError` for damaged data, and `StorageError` where the storage fails. What is
    finished stays, and the same call goes on with it.
    """

    def build_corpus(
        self,
        name: str,
        inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        settings: CorpusSettings | None = None,
        *,
        tokenizers: Sequence[Model | Tokenizer | str | os.PathLike[str]] = (),
        reporter: Reporter | None = None,
    ) -> Corpus:
        """Read text, cut long documents where all tokenizers agree, and keep the result.

        Args:
            name: of the corpus.
            inputs: files, shell patterns, folders or URLs; `fusestore corpus --help` lists formats.
            settings: columns, splits and sizes; the defaults unless given.
            tokenizers: those of all models of the run: models, tokenizers, or what `Model.open`
                takes with this store. Documents will fit each of them.
            reporter: receives progress updates.

        Raises:
            NotFoundError: no input matches, or there is no such model.
            InvalidInputError: an input cannot be read, no text is left, or there is no tokenizer.
            FingerprintMismatchError: another corpus has this name; it was left as it is.
        """
        return stages.build_corpus(
            self, name, inputs, settings, tokenizers=tokenizers, reporter=reporter
        ).artifact

    def capture(
        self,
        name: str,
        model: Model | str | os.PathLike[str],
        corpus: Corpus | str,
        settings: CaptureSettings | None = None,
        *,
        reporter: Reporter | None = None,
    ) -> Cache:
        """Keep a model's next-token log-probabilities over a corpus as a distribution cache.

        Args:
            name: of the cache.
            model: the source model, or what `Model.open` takes with this store; then the settings'
                `revision` and `trust_remote_code` apply.
            corpus: the corpus, or its name.
            settings: what is kept and how the model runs; the defaults unless given.
            reporter: receives progress updates.

        Raises:
            NotFoundError: no such model or corpus.
            InvalidInputError: more entries than the vocabulary has, or no such device.
            IncompatibleError: model and tokenizer do not belong together, or a document is longer
                than the model's context.
            FingerprintMismatchError: a cache of this name was made with other settings.
            NonFiniteError: the model's logits are not finite and `on_nan` is `stop`.
        """
        from fusestore.capture.settings import CaptureSettings
        from fusestore.models.model import Model

        settings = settings or CaptureSettings()
        opened = Model.open(
            model,
            store=self,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
        return stages.capture(
            self, name, opened, self._corpus(corpus), settings, reporter=reporter
        ).artifact

    def import_rows(
        self,
        name: str,
        layout: str,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        settings: ImportSettings | None = None,
        *,
        model: Model | Tokenizer | str | os.PathLike[str],
        corpus: str | None = None,
        reporter: Reporter | None = None,
    ) -> Cache:
        """Keep rows that another tool made as a distribution cache, without running a model.

        All files are read and checked before anything is written.

        Args:
            name: of the cache.
            layout: the format of the files: numpy, fusellm, axolotl, distillkit, llama.cpp, vllm
                or sglang; docs/interop.md describes them.
            paths: files and folders of this machine.
            settings: how they are read and stored; the defaults unless given.
            model: whose rows they are: an open model, from whose configuration the width of the
                vocabulary is known; or its tokenizer, or what opens one.
            corpus: name of the corpus of the rows' texts, found in it or made; that of the cache
                unless given.
            reporter: receives progress updates, and lines on what is left out.

        Raises:
            NotFoundError: no such file or model.
            InvalidInputError: a file is damaged, of another layout or of another tokenizer.
            IncompatibleError: the existing corpus holds none of the texts.
            FingerprintMismatchError: another cache has this name.
        """
        return stages.import_rows(
            self,
            name,
            layout,
            paths,
            settings,
            model=model,
            corpus=corpus,
            reporter=reporter,
        ).artifact

    def export(
        self,
        cache: Cache | str,
        path: str | os.PathLike[str],
        layout: str = "parquet",
        *,
        reporter: Reporter | None = None,
    ) -> Exported:
        """Write the rows of a cache in a layout that other tools read.

        Args:
            cache: it, or its name.
            path: a file or folder of this machine that does not exist.
            layout: parquet, datasets, numpy, safetensors, axolotl or distillkit; docs/interop.md
                describes them.
            reporter: receives progress updates.

        Raises:
            NotFoundError: no such cache.
            AlreadyExistsError: something is at the path.
            InvalidInputError: no such format.
            IncompatibleError: the layout cannot hold the cache's rows.
        """
        from fusestore.interop.export import export_cache

        return export_cache(self, cache, layout, path, reporter=reporter)

    def align(
        self,
        source: Cache | str,
        target: Model | Tokenizer | Target | str,
        settings: AlignSettings | None = None,
        *,
        name: str | None = None,
        corpus: str | None = None,
        reporter: Reporter | None = None,
    ) -> Alignment:
        """Align a cache's tokens and vocabulary to the target's tokenizer.

        Args:
            source: the cache, or its name.
            target: the target; or a name that the store knows, a model, or a tokenizer's digest.
            settings: methods; the defaults unless given.
            name: of the alignment; `SOURCE--TARGET` unless given.
            corpus: name of the corpus the target reads; the cache's own unless given.
            reporter: receives progress updates.

        Raises:
            NotFoundError: no such cache, corpus, or target.
            IncompatibleError: cache and target read different corpora.
            InvalidInputError: the target's digest alone does not say whether documents begin with
                BOS.
            FingerprintMismatchError: an alignment of this name was made with other settings.
        """
        return stages.align(
            self, source, target, settings, name=name, corpus=corpus, reporter=reporter
        ).artifact

    def forecast(
        self,
        recipe: Recipe,
        settings: ForecastSettings | None = None,
        *,
        target: Model | Tokenizer | Target | None = None,
        reporter: Reporter | None = None,
    ) -> Forecast:
        """Forecast what fusing a recipe would bring, from the caches alone; nothing is written.

        Args:
            recipe: what would be fused, and how.
            settings: the split to look at and what to compare; the defaults unless given.
            target: the target, where it is open already.
            reporter: receives progress updates.

        Raises:
            NotFoundError: no such cache, corpus, split or alignment.
            IncompatibleError: caches of different corpora or for other tokenizers, or rows that
                are samples.
            InvalidInputError: a choice of the recipe does not fit what the store holds.
            NonFiniteError, CorruptionError: a cache is damaged.
        """
        from fusestore.forecast.run import forecast

        return forecast(self, recipe, settings, target=target, reporter=reporter)

    def report(
        self,
        file: str,
        settings: ReportSettings | None = None,
        *,
        reporter: Reporter | None = None,
    ) -> StoreReport:
        """Write a page about the store, with a viewer of its tokens; no model runs.

        Args:
            file: path or URL of the HTML file, outside the store; replaced if it exists.
            settings: what the page shows; the defaults unless given.
            reporter: receives progress updates.

        Returns:
            What the page shows, but for the tokens. A part that cannot be made is absent, with
            the reason.

        Raises:
            NotFoundError: no such store, or it has no fused dataset of the name in the settings.
            InvalidInputError: the file lies in the store, or is not called `….html`.
            MissingDependencyError: the extra `report` is not installed.
            AccessDeniedError, StorageError: the file cannot be written; it is as it was.
        """
        from fusestore.workflows.store_report import write_report

        return write_report(self, file, settings, reporter=reporter)

    def fuse(
        self,
        name: str,
        recipe: Recipe | None = None,
        *,
        target: Model | Tokenizer | Target | None = None,
        materialize: bool = True,
        jobs: int = 1,
        reporter: Reporter | None = None,
    ) -> Fused:
        """Fuse what a recipe names into a fused dataset, now or when its shards are read.

        Args:
            name: of the fused dataset.
            recipe: what is fused, and how; None goes on with the dataset of this name.
            target: the target, where it is open already; found by the recipe's `target` unless
                given.
            materialize: make every shard now. Without it the definition is written, and a shard is
                made when it is first read.
            jobs: processes that make shards.
            reporter: receives progress updates.

        Raises:
            NotFoundError: a cache or an alignment is missing, or there is nothing to go on with.
            IncompatibleError, InvalidInputError: a choice of the recipe does not fit what the
                store holds.
            FingerprintMismatchError: the dataset of this name was made from something else.
            CorruptionError, StorageError: something it is made from is damaged, or the storage
                failed.
        """
        return stages.fuse(
            self,
            name,
            recipe,
            target=target,
            materialize=materialize,
            jobs=jobs,
            reporter=reporter,
        ).artifact

    def train(
        self,
        name: str,
        model: Model | TrainedModel | MergedModel | str | os.PathLike[str],
        fused: str | Mapping[str, float | None] | Fused | FusedDataset | FusedMixture,
        settings: TrainSettings | None = None,
        *,
        evaluate: tuple[str, str] | None = None,
        work_dir: Path | None = None,
        log_dir: Path | None = None,
        reporter: Reporter | None = None,
    ) -> TrainedModel:
        """Train a model on a fused dataset and keep it as `models/NAME`.

        Args:
            name: of the trained model.
            model: the model to start from, whose tokenizer is the dataset's; or what `Model.open`
                takes with this store.
            fused: the fused dataset, or its name; or names of several with their weights.
            settings: of the run; the defaults unless given.
            evaluate: corpus and split to score in bits per byte, before, during and after training.
            work_dir: local folder for checkpoints; by default a folder in the user's cache.
            log_dir: local folder outside the store for TensorBoard logs; None: no logs.
            reporter: receives progress updates.

        Raises:
            NotFoundError: there is no such dataset, model or corpus.
            IncompatibleError: the model cannot be trained on this dataset.
            NonFiniteError: the loss, its gradient or the weights are not finite.
            DivergedError: the loss rose by more than `settings.loss_spike`.
            AlreadyExistsError: another model has this name.
        """
        from fusestore.train.settings import TrainSettings

        return stages.train_model(
            self,
            name,
            self._model(model),
            fused,
            settings or TrainSettings(),
            evaluate=evaluate,
            work_dir=work_dir,
            log_dir=log_dir,
            reporter=reporter,
        ).artifact

    def merge(
        self,
        name: str,
        models: Sequence[Model | TrainedModel | MergedModel | str | os.PathLike[str]],
        settings: MergeSettings | None = None,
        *,
        base: Model | TrainedModel | MergedModel | str | os.PathLike[str] | None = None,
        evaluate: tuple[str, str] | None = None,
        precision: PrecisionSetting = "auto",
        reporter: Reporter | None = None,
    ) -> MergedModel:
        """Merge the weights of models and keep the result as `models/NAME`.

        Args:
            name: of the merged model.
            models: two or more models (one is enough with a base), or what `Model.open` takes with
                this store.
            settings: how weights are merged; linear with equal weights unless given.
            base: the model that the others were trained from, for methods that need one.
            evaluate: corpus and split to score in bits per byte.
            precision: format of the merged model's matrix products while it is scored.
            reporter: receives progress updates.

        Raises:
            NotFoundError: there is no such model or corpus.
            InvalidInputError: the number of models or weights does not fit the method.
            IncompatibleError: models of different architectures, tensors or tokenizers.
            NonFiniteError: the merged weights hold NaN or infinity.
            AlreadyExistsError: another model has this name.
        """
        from fusestore.merge.settings import MergeSettings

        return stages.merge_models(
            self,
            name,
            [self._model(model) for model in models],
            settings or MergeSettings(),
            base=None if base is None else self._model(base),
            evaluate=evaluate,
            precision=precision,
            reporter=reporter,
        ).artifact

    def compare(
        self,
        corpus: Corpus | str,
        split: str,
        models: Sequence[Model | TrainedModel | MergedModel | str | os.PathLike[str]] = (),
        *,
        forecast: Forecast | None = None,
        precision: PrecisionSetting = "auto",
        reporter: Reporter | None = None,
    ) -> Comparison:
        """Score the store's models, others, and the sources of a forecast on the same text.

        Args:
            corpus: the corpus, or its name.
            split: a split of the corpus.
            models: further models, or what `Model.open` takes with this store.
            forecast: of caches on this split; its sources and their uniform ensemble are compared.
            precision: format of the models' matrix products.
            reporter: receives progress updates.

        Raises:
            NotFoundError: there is no such corpus or model.
            InvalidInputError: there is no such split, the forecast is of another one, a model is
                no causal language model, or there is nothing to compare.
        """
        from fusestore.workflows.comparison import compare

        return compare(
            self,
            corpus if isinstance(corpus, str) else corpus.name,
            split,
            [self._model(model) for model in models],
            forecast=forecast,
            precision=precision,
            reporter=reporter,
        )

    def _corpus(self, corpus: Corpus | str) -> Corpus:
        return self.open_corpus(corpus) if isinstance(corpus, str) else corpus

    def _model(
        self, model: Model | TrainedModel | MergedModel | str | os.PathLike[str]
    ) -> Model | str | os.PathLike[str]:
        """A model of this store by its name, anything else as it is."""
        from fusestore.merge.manifest import MergedModel
        from fusestore.train.manifest import TrainedModel

        return model.name if isinstance(model, TrainedModel | MergedModel) else model
