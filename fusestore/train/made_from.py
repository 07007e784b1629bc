"""What a model is trained from, with licenses: its base, and the models whose rows it learns."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from fusestore.data.dataset import FusedDataset
from fusestore.data.mixture import FusedMixture
from fusestore.data.streaming.stream_mixture import StreamingMixture
from fusestore.data.streaming.streaming_dataset import StreamingFusedDataset
from fusestore.errors import FusestoreError
from fusestore.models.model import Model
from fusestore.storage.location import Location
from fusestore.store.artifact_files import MANIFEST_FILE
from fusestore.store.licenses import LicensedInput, worth_keeping
from fusestore.store.manifest import manifest_content
from fusestore.train.step_batches import Trainable


def made_from(model: Model, dataset: Trainable) -> tuple[LicensedInput, ...]:
    """The base and the teachers, by what the manifests of the fused datasets tell."""
    base = LicensedInput(
        role="base",
        name=model.name,
        digest=model.digest,
        model_spec=model.portable_spec,
        license=model.license,
    )
    return worth_keeping([base, *_teachers(dataset)])


def _teachers(dataset: object) -> Iterator[LicensedInput]:
    if isinstance(dataset, FusedMixture):
        for each in dataset.datasets:
            yield from _teachers(each)
    elif isinstance(dataset, StreamingMixture):
        for stream in dataset.streams:
            yield from stream.made_from
    elif isinstance(dataset, StreamingFusedDataset):
        yield from dataset.made_from
    elif isinstance(dataset, FusedDataset):
        file = Location.parse(dataset.folder) / MANIFEST_FILE
        try:
            content = manifest_content(file.read_bytes(), str(file))
            yield from map(LicensedInput.model_validate, content.get("made_from", ()))
        except (FusestoreError, ValidationError, TypeError):
            # One that is made while it is read has no manifest.
            return
