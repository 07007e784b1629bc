"""Fingerprints: what an artifact's content depends on, written before anything else of it.

Whoever goes on with an artifact, or asks for it again, must ask for the same; otherwise both
fingerprints are shown and nothing is changed.
"""

from __future__ import annotations

from fusestore.errors import AlreadyExistsError, FingerprintMismatchError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.manifest import Manifest


def write_fingerprint(folder: Location, fingerprint: Manifest, name: str) -> None:
    """Write the fingerprint, or check that the one there is the same.

    Args:
        folder: the artifact's folder.
        fingerprint: what its content depends on.
        name: what messages call it.

    Raises:
        FingerprintMismatchError: the folder holds, complete or not, what depends on something else.
    """
    file = folder / FINGERPRINT_FILE
    try:
        existing = type(fingerprint).load(file)
    except NotFoundError:
        try:
            fingerprint.save(file)
        except AlreadyExistsError:
            existing = type(fingerprint).load(file)
        else:
            return
    check_same_fingerprint(existing, fingerprint, f"{name} ({folder})")


def check_same_fingerprint(existing: Manifest, asked: Manifest, name: str) -> None:
    """Refuse to continue what was begun with other settings.

    Raises:
        FingerprintMismatchError: with each differing field, both values and both digests.
    """
    if existing.digest == asked.digest:
        return
    old, new = (_flat(fingerprint.model_dump(mode="json")) for fingerprint in (existing, asked))
    lines = [
        f"  {field}: {old.get(field)!r} there, {new.get(field)!r} now"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]
    raise FingerprintMismatchError(
        "\n".join(
            [
                f"{name} was begun with other settings (fingerprint {existing.digest} there, "
                f"{asked.digest} now):",
                *lines,
                "Use the same settings to continue it, another name for a new one, or delete it.",
            ]
        )
    )


def _flat(content: dict[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[key] = value
    return flat
