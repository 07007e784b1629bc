"""Writes a cache in a process that may be killed: run by test_crash.

For each line `FOLDER` on standard input: fork a child that writes the cache, print its process
id, wait for it, print its exit status. Forking keeps the imports out of every attempt.
"""

import importlib.util
import os
import sys
from pathlib import Path

import zarr.codecs.numcodecs  # noqa: F401 - imported once, before the forks

from fusestore.store.layout import Store


def load_make_capture():
    spec = importlib.util.spec_from_file_location(
        "captures", Path(__file__).parents[1] / "cache/conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["captures"] = module
    spec.loader.exec_module(module)
    return module.make_capture


def main():
    capture = load_make_capture()((70, 3, 90), seed=5)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            capture.write(Store.open(line.strip()))
            os._exit(0)
        print(child, flush=True)  # noqa: T201
        print(os.waitpid(child, 0)[1], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
