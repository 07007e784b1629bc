"""The models of a fusion.toml."""

from __future__ import annotations

from fusestore.models.model import Model
from fusestore.workflows.fusion_config import FusionConfig


def open_models(config: FusionConfig) -> dict[str, Model]:
    """The models by their names in the file, each of them found.

    Names of the store's artifacts are not looked up: what a run makes must not depend on what it
    made before.

    Raises:
        NotFoundError, InvalidInputError, MissingDependencyError: as `Model.folder`.
    """
    models = {
        name: Model.open(
            model.model,
            revision=model.capture.revision,
            trust_remote_code=model.capture.trust_remote_code,
        )
        for name, model in config.models.items()
    }
    for model in models.values():
        # Before anything slow is begun.
        _ = model.folder
    return models
