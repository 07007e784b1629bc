"""The models of a fusion.toml."""

from __future__ import annotations

from fusestore.models.model import Model
from fusestore.workflows.fusion_config import FusionConfig


def open_models(config: FusionConfig) -> dict[str, Model]:
    """The models by their names in the file; checks that each exists.

    Names of the store's artifacts are not looked up, so that a run does not depend on the results
    of earlier runs.

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
        # Raises the error of a missing model before anything slow starts.
        _ = model.folder
    return models
