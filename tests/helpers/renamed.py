"""A store of ten artifacts with other names."""

import fusestore as fs
from fusestore.workflows.verification import verify_inputs_too

RENAMED = {
    "corpora/addresses/": "corpora/places/",
    "caches/wide/": "caches/breit/",
    "alignments/wide--small/": "alignments/first/",
    "fused/mince/": "fused/second/",
    "models/fused/": "models/third/",
}


def renamed_path(path):
    for old, new in RENAMED.items():
        if path.startswith(old):
            return path.replace(old, new, 1)
    return path


def rename_all(store):
    opened = fs.open_store(store.location)
    opened.rename("corpus/addresses", "places")
    opened.rename("wide", "cache/breit")
    opened.rename("alignment/wide--small", "first")
    opened.rename("fused/mince", "second")
    opened.rename("model/fused", "third")


def check_sound(store):
    for artifact in verify_inputs_too(store).artifacts:
        assert artifact.sound, artifact
        assert not artifact.missing_inputs, artifact
