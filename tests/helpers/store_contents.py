"""Every file of a store, and what must be whole of it after a crash."""

import re

from fusestore.cache.reader import open_cache
from fusestore.cache.verify import verify_cache
from fusestore.errors import NotFoundError
from fusestore.store.layout import Store


def is_between(name):
    """Files that no reader looks at: unfinished ones, and those that divide the work."""
    return name.rsplit("/", 1)[-1].startswith(".tmp-") or name.startswith("caches/tiny/leases/")


def check_nothing_torn(root, whole):
    """Every visible file is whole, and what opens is right."""
    for name, data in contents(root).items():
        if not is_between(name):
            assert data == whole[name], name
    try:
        cache = open_cache(root, "tiny")
    except NotFoundError:
        return
    assert verify_cache(cache.location) == []


def contents(root):
    """Every file below a store, by its path."""
    location = Store.open(root).location
    return {name: (location / name).read_bytes() for name in location.list_recursive()}


def files_by_kind(store):
    """One file of each kind: paths that differ in numbers or digests only are of one kind."""
    found = {}
    for path in sorted(store.rglob("*")):
        if path.is_file():
            name = path.relative_to(store).as_posix()
            found.setdefault(re.sub(r"[0-9a-f]{16}|\d+", "#", name), path)
    return found
