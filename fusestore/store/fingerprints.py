"""Fingerprints: the settings and inputs that an artifact's content depends on, written first.

A run that continues an artifact, or requests it again, must have the same fingerprint. Otherwise an
error shows both fingerprints and nothing is changed.
"""

from __future__ import annotations

from fusestore.errors import AlreadyExistsError, FingerprintMismatchError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.artifact_files import FINGERPRINT_FILE
from fusestore.store.manifest import Manifest


def write_fingerprint(folder: Location, fingerprint: Manifest, name: str) -> None:
    """Write the fingerprint, or check that it equals the stored fingerprint.

    Args:
        folder: the artifact's folder.
        fingerprint: what its content depends on.
        name: of the artifact, for messages.

    Raises:
        FingerprintMismatchError: the folder holds an artifact of another fingerprint.
        AlreadyExistsError: there is an artifact whose name differs in case only.
    """
    file = folder / FINGERPRINT_FILE
    try:
        existing = type(fingerprint).load(file)
    except NotFoundError:
        check_case(folder)
        try:
            fingerprint.save(file)
        except AlreadyExistsError:
            existing = type(fingerprint).load(file)
        else:
            return
    check_same_fingerprint(existing, fingerprint, f"{name} ({folder})")


def check_case(folder: Location) -> None:
    """Check that no folder beside a new one has the same name in other case.

    Raises:
        AlreadyExistsError: there is one; on Windows and macOS both names are of one folder.
    """
    for name in folder.parent.list():
        if name != folder.name and name.lower() == folder.name.lower():
            raise AlreadyExistsError(
                f"{folder.parent} has {name!r}, which differs from {folder.name!r} in case only. "
                "Windows and macOS hold one of the two: choose another name."
            )


def check_same_fingerprint(existing: Manifest, requested: Manifest, name: str) -> None:
    """Refuse to continue an artifact that was begun with other settings.

    Raises:
        FingerprintMismatchError: with each differing field, both values and both digests.
    """
    if existing.digest == requested.digest:
        return
    old, new = (_flat(fingerprint.model_dump(mode="json")) for fingerprint in (existing, requested))
    lines = [
        f"  {field}: {old.get(field)!r} stored, {new.get(field)!r} requested"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    ]
    raise FingerprintMismatchError(
        "\n".join(
            [
                f"{name} was begun with other settings (fingerprint {existing.digest} stored, "
                f"{requested.digest} requested):",
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
