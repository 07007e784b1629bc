"""A store on its way between storages: pushed, renamed, cleared up, checked, published, pulled."""

from collections.abc import Sequence
from pathlib import Path

from fusestore.store.layout import Store
from fusestore.workflows.managing.garbage import GarbageSettings, collect_garbage
from fusestore.workflows.managing.renaming import rename_artifact
from fusestore.workflows.publishing.run import publish_artifacts
from fusestore.workflows.publishing.settings import PublishSettings
from fusestore.workflows.sharing import copy_artifacts
from fusestore.workflows.sharing.artifacts import paths_in
from fusestore.workflows.verification import verify_store


def there_and_back(
    start: Store, remote: Store, folder: Path, names: Sequence[str], model: str
) -> None:
    """Do to a store all that is done between storages; the files must be the same at the end.

    Args:
        start: a local store.
        remote: an empty store elsewhere.
        folder: an empty folder.
        names: artifacts with all their inputs, in the local form.
        model: the name of a model among them.
    """
    copy_artifacts(start, remote, names)
    rename_artifact(remote, f"model/{model}", "elsewhere")
    rename_artifact(remote, "model/elsewhere", model)
    assert collect_garbage(remote, GarbageSettings()).items == ()
    found = verify_store(remote)
    assert {path for path, problems in found.items() if not problems} == set(names)
    back = Store.open(folder / "back")
    copy_artifacts(remote, back, names)
    published = folder / "published"
    publish_artifacts(remote, [f"model/{model}"], Store.open(published).location)
    again = remote.location.parent / "published"
    publish_artifacts(start, [f"model/{model}"], again, PublishSettings())
    whole = _files(start)
    assert _files(back).items() <= whole.items()
    assert {path for path, complete in paths_in(back).items() if complete} == set(names)
    model_files = {
        path: data for path, data in whole.items() if path.startswith(f"models/{model}/")
    }
    for place in (Store.open(published).location, again):
        assert model_files.items() <= _files(Store(place)).items()


def _files(store: Store) -> dict[str, bytes]:
    location = store.location
    return {path: (location / path).read_bytes() for path in location.list_recursive()}
