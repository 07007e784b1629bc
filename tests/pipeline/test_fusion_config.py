"""All of a fusion.toml is checked before anything slow is imported."""

import json
import subprocess
import sys

import pytest

from fusestore.align.settings import AlignSettings
from fusestore.errors import FusestoreError, InvalidInputError
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
from tests.helpers.tiny_job import write_fusion

HEAVY = ("numba", "polars", "s3fs", "torch", "transformers", "zarr")

# What is replaced, by what, and what the message says.
MISTAKES = [
    ('strategy = "mince"', 'strategy = "mincee"', "Did you mean 'mince'"),
    ('name = "mince"', 'name = "mince"\nkinds = []', "kinds"),
    ('name = "mince"', 'name = "mince"\nkinds = ["spam"]', "'span'"),
    ('name = "mince"', 'name = "../mince"', "cannot be a name"),
    ('split_column = "split"', "", "split 'held_out' is not among what [corpus] makes"),
    ('split_column = "split"', "max_bytes = { held_out = 9 }", "max_bytes limits the split"),
    ('split_column = "split"', "held_out_fraction = 2", "held_out_fraction"),
    ('target = "small"', 'target = "smal"', "Did you mean 'small'"),
    ('sources = ["small", "wide"]', 'sources = ["small", "wid"]', "Did you mean 'wide'"),
    ('objective = "clm"', 'objective = "clm"\nmodel = "smalll"', "Did you mean 'small'"),
    (
        'objective = "clm"',
        'objective = "clm"\ndivergence = "forward_k"',
        "mean 'forward_kl'?",
    ),
    ('objective = "clm"', 'objective = "clm"\nmodle = "small"', "Did you mean 'model'"),
    ('objective = "clm"', 'objective = "clms"', "'clm'"),
    ("learning_rate", "learnign_rate", "[train]"),
    ("[capture]", "[capture]\nprofil = 1", "'profil' is not a key of [capture]"),
    ("[capture]", "[align]\nmethods = 1\n[capture]", "Did you mean 'method'"),
    ("[capture]", '[align]\nmethod = "hybird"\n[capture]', "'hybrid'"),
    ('license = "', 'licens = "', "Did you mean 'license'"),
    ("evaluate_split", "evaluate_spilt", "Did you mean 'evaluate_split'"),
    ("[corpus]", 'plugins = "mine"\n[corpus]', "a list of module names"),
    ("[corpus]", 'plugins = ["no_such_plugin"]\n[corpus]', "no_such_plugin"),
    ("[corpus]", "[corpus]\ninputs_ = 1", "Did you mean 'inputs'"),
    ("[corpus]", 'preset = "fuselm"\n[corpus]', "'fusellm'"),
    ("[capture]", '[align]\npreset = "bes"\n[capture]', "'best'"),
]

SEVERAL = ("[train]", '[fuse.datasets.one]\n[fuse.datasets.two]\nstrategy = "em"\n\n[train]')
UNNAMED = ('name = "mince"\n', "")
MERGE = "\n[merge.both]\n"
# The same with further changes, each to the tiny job's file.
MISTAKES_OF_SEVERAL = [
    ((SEVERAL,), "[fuse.datasets], whose tables are named already. Remove name"),
    ((SEVERAL, UNNAMED), "there are one, two. Add one of them, as in fused = 'one'"),
    ((SEVERAL, UNNAMED, ("[train]\n", "[train]\nfused = 'one'\n")), "'fused' is not a key of"),
    ((UNNAMED, ("[train]", "[fuse.dataset.one]\n\n[train]")), "Did you mean 'datasets'"),
    ((UNNAMED, ("[train]", "[fuse.datasets.one]\ntop_kk = 1\n\n[train]")), "[fuse.datasets.one]"),
    ((('"clm"', '"clm"\nfused = "minced"'),), "Did you mean 'mince'"),
    ((('"fuse"', f'"fuse"{MERGE}models = ["fusde"]'),), "at least 2 models"),
    ((('"fuse"', f'"fuse"{MERGE}models = ["fusde", "baseline"]'),), "Did you mean 'fused'"),
    ((('"fuse"', f'"fuse"{MERGE}models = ["fused", "baseline"]\nmethod = "mean"'),), "'varm'"),
    ((('"fuse"', f'"fuse"{MERGE}model = ["fused"]'),), "Did you mean 'models'"),
    (
        (('"fuse"', '"fuse"\n[merge.fused]\nmodels = ["fused", "baseline"]'),),
        "both make a model of that name",
    ),
    (
        (
            ('"clm"', '"clm"\nmodel = "wide"'),
            ('"fuse"', f'"fuse"{MERGE}models = ["baseline", "fused"]'),
        ),
        "start from wide, small",
    ),
    (
        (
            ('"clm"', '"clm"\nlora = {rank = 2, adapter_only = true}'),
            ('"fuse"', f'"fuse"{MERGE}models = ["fused", "baseline"]'),
        ),
        "a LoRA adapter alone",
    ),
]

PROGRAM = f"""
import json, sys
from fusestore.align.settings import AlignSettings
from fusestore.errors import FusestoreError
from fusestore.storage.location import Location
from fusestore.workflows.fusion_config import load_config
messages = []
for file in sys.argv[1:]:
    try:
        load_config(Location.parse(file))
    except FusestoreError as error:
        messages.append(str(error))
    else:
        messages.append("")
print(json.dumps([messages, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def test_every_mistake_is_found_before_anything_slow_is_imported(tmp_path, job):
    files = []
    mistakes = [*((((old, new),), text) for old, new, text in MISTAKES), *MISTAKES_OF_SEVERAL]
    for number, (changes, _) in enumerate(mistakes):
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(str(write_fusion(folder, job, str(tmp_path / "store"), *changes)))
    command = [sys.executable, "-c", PROGRAM, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    messages, heavy = json.loads(done.stdout)
    for (changes, expected), message in zip(mistakes, messages, strict=True):
        assert expected in message, (changes, message)
    assert heavy == []


def test_the_command_finds_them_as_early(tmp_path, job):
    change = ('strategy = "mince"', 'strategy = "mincee"')
    file = write_fusion(tmp_path, job, str(tmp_path / "store"), change)
    program = f"""
import sys
from fusestore_cli.app import main
sys.argv = ["fusestore", "run", {str(file)!r}]
try:
    main()
except SystemExit as ended:
    print(ended.code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 []\n"
    assert "Did you mean 'mince'" in " ".join(done.stderr.split())


def test_a_plugin_of_the_file_registers_a_strategy(tmp_path, job, monkeypatch):
    (tmp_path / "last_source.py").write_text(
        "from fusestore import register_strategy\n\n\n"
        "@register_strategy('last_source')\n"
        "def last_source(scores, sizes, settings):\n"
        "    weights = scores * 0\n"
        "    weights[-1] = 1\n"
        "    return weights\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    change = ('strategy = "mince"', 'strategy = "last_source"')
    file = Location.parse(write_fusion(tmp_path, job, "store", change))
    with pytest.raises(InvalidInputError, match="last_source"):
        load_config(file)
    with_plugin = ("[corpus]", 'plugins = ["last_source"]\n[corpus]')
    file = Location.parse(write_fusion(tmp_path, job, "store", change, with_plugin))
    assert load_config(file).fuse["mince"].strategy == "last_source"


def test_a_missing_file_says_how_to_begin(tmp_path):
    with pytest.raises(FusestoreError, match="fusestore init"):
        load_config(Location.parse(tmp_path / "fusion.toml"))


def test_a_preset_is_that_of_every_table_that_names_none(tmp_path, job):
    preset = ("[corpus]", 'preset = "fusellm"\n[corpus]')
    config = load_config(Location.parse(write_fusion(tmp_path, job, str(tmp_path / "s"), preset)))
    assert config.align == AlignSettings(preset="fusellm")
    recipe = config.fuse["mince"]
    assert (recipe.score, recipe.unaligned) == ("token_ce", "fusellm")
    assert (recipe.alignment_method, recipe.vocabulary_method) == ("mined", "mined")
    assert all(run.settings.tail == "renormalize" for run in config.train.values())
    # What a table says, and the preset that it names itself, go before.
    own = ("[capture]", '[align]\npreset = "best"\nvocabulary = "exact"\n[capture]')
    (tmp_path / "own").mkdir()
    file = write_fusion(tmp_path / "own", job, str(tmp_path / "s"), preset, own)
    assert load_config(Location.parse(file)).align == AlignSettings(vocabulary="exact")


def test_several_fused_datasets_share_what_fuse_says(tmp_path, job):
    runs = (
        ('objective = "clm"', 'objective = "clm"\nfused = "two"'),
        ('objective = "fuse"', 'fused = "one"'),
    )
    file = write_fusion(tmp_path, job, str(tmp_path / "store"), SEVERAL, UNNAMED, *runs)
    config = load_config(Location.parse(file))
    one, two = config.fuse.values()
    assert list(config.fuse) == ["one", "two"]
    assert (one.strategy, two.strategy) == ("mince", "em")
    assert one == two.model_copy(update={"strategy": "mince"})
    assert {name: run.fused for name, run in config.train.items()} == {
        "baseline": "two",
        "fused": "one",
    }
    assert all(run.model == "small" for run in config.train.values())
