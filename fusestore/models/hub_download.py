"""Downloads of a model from the hub: the files that the model needs, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from fusestore.errors import NotFoundError
from fusestore.models.folder_kinds import check_folder
from fusestore.models.weight_files import PYTORCH_FILE, SAFETENSORS_FILE, weight_files

_BESIDE_WEIGHTS = (
    *("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja"),
    *("LICENSE*", "NOTICE*", "USE_POLICY*", "README.md"),
)
"""Configuration, tokenizer, processor, chat templates, license, and the card that names it."""

_CODE = ("*.py",)

_OTHER_FORMS = (
    *("original/*", "onnx/*", "openvino/*", "coreml/*", "flax/*", "tf/*"),
    *("runs/*", "checkpoint-*/*", "global_step*/*"),
)
"""Folders with the same model in another form, or of another step of its training."""


def download_model(
    repository: str, revision: str | None, trust_remote_code: bool, *, weights: bool = True
) -> Path:
    """The local folder of a model of the hub, in the cache of huggingface_hub.

    What the model is comes first, so that another kind of model is refused before its weights are
    downloaded. Of weights that are there in several formats, only those that are loaded.

    Args:
        repository: `OWNER/NAME`.
        revision: commit, branch or tag; by default the main branch.
        trust_remote_code: download the code of the repository too.
        weights: download the weights too.

    Raises:
        NotFoundError: there is no such repository or revision, or it cannot be reached.
        InvalidInputError: it holds another kind of model.
    """
    code = _CODE if trust_remote_code else ()
    folder = _fetch(repository, revision, [*_BESIDE_WEIGHTS, *code])
    check_folder(folder, repository)
    if not weights:
        return folder
    # The folder of the hub's cache is named by the commit.
    commit = folder.name
    # config.json, which is there: huggingface_hub warns if no file matches.
    _fetch(repository, commit, ["config.json", SAFETENSORS_FILE])
    if not weight_files(folder):
        _fetch(repository, commit, ["config.json", PYTORCH_FILE])
    indexed = [escape(path.name) for path in weight_files(folder)]
    _fetch(repository, commit, ["config.json", *indexed])
    return folder


def _fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_OTHER_FORMS),
            )
        )
    except (OSError, ValueError, RuntimeError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotFoundError(
            f"Model {repository!r} is neither a local folder nor reachable on the hub ({reason}). "
            "Check the name, or give a folder or a .gguf file."
        ) from error
