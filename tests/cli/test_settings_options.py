"""Options are made of settings classes: their types, what reaches the command, and refusals."""

import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Literal

import pytest
import typer
from fusestore_cli.command_help import LazyCommand
from fusestore_cli.commands import COMMANDS
from fusestore_cli.field_options import SettingOption, setting_options
from fusestore_cli.settings_options import TypedSettings, settings_options
from pydantic import Field, model_validator
from typer.testing import CliRunner

import fusestore
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import InvalidInputError
from fusestore.store.manifest import Frozen


class Nested(Frozen):
    rank: int = Field(default=16, ge=1, description="Rank of the nested table.")
    layers: tuple[str, ...] = Field(default=(), description="Names of some layers.")
    merge: bool = Field(default=True, description="Whether it is merged.")


class Settings(Frozen):
    top_k: int = Field(
        default=3,
        ge=1,
        le=9,
        description="Most entries kept.",
        json_schema_extra={"short": "-k", "panel": "Entries"},
    )
    share: float = Field(default=0.5, gt=0, lt=1, description="Share of the entries.")
    rate: float = Field(
        default=0.1, description="Peak of the rate.", json_schema_extra={"names": ["--lr"]}
    )
    mode: Literal["one", "two"] = Field(default="one", description="Mode of the work.")
    quick: bool = Field(default=False, description="Whether it is quick.")
    tail: bool = Field(default=True, description="Whether the tail is kept.")
    spike: float | None = Field(default=3.0, gt=0, description="Height of a spike.")
    limit: int | None = Field(default=None, ge=1, description="Limit of the limit.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Both of the betas.")
    names: tuple[str, ...] = Field(default=("a", "b"), description="Names of the entries.")
    counts: dict[str, int] = Field(
        default={}, description="Counts by split.", json_schema_extra={"metavar": "SPLIT=NUMBER"}
    )
    folder: Path | None = Field(default=None, description="Folder of the work.")
    lora: Nested | None = Field(default=None, description="A table of its own.")

    @model_validator(mode="after")
    def _check(self):
        if self.mode == "two" and self.top_k == 1:
            raise ValueError("mode two needs a top_k of at least 2")
        return self


@pytest.fixture
def run():
    """Runs a command with these settings; returns what it received, or the failed result."""

    def run_command(*arguments, only_typed=False, base=None, fails=False, settings=Settings):
        received = []
        app = typer.Typer(rich_markup_mode=None)

        if only_typed:

            @app.command()
            @settings_options(settings)
            def command(name: str, settings: TypedSettings[settings]) -> None:
                received.append(settings.values if base is None else settings.over(base, "x.toml"))

        else:

            @app.command()
            @settings_options(settings)
            def command(name: str, settings: settings) -> None:  # type: ignore[valid-type]
                received.append(settings)

        result = CliRunner().invoke(app, ["some name", *arguments])
        if fails:
            assert result.exit_code == 2, result.output
            return result.output
        if result.exit_code and result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return received[0] if received else result.output

    return run_command


def test_nothing_typed_is_nothing_set(run):
    assert run() == Settings()
    assert run().model_fields_set == set()
    assert run(only_typed=True) == {}


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        (["-k", "4"], {"top_k": 4}),
        (["--top-k", "3"], {"top_k": 3}),
        (["--share", "0.25"], {"share": 0.25}),
        (["--lr", "1e-3"], {"rate": 1e-3}),
        (["--mode", "two"], {"mode": "two"}),
        (["--quick"], {"quick": True}),
        (["--no-tail"], {"tail": False}),
        (["--tail"], {"tail": True}),
        (["--spike", "none"], {"spike": None}),
        (["--spike", "2.5"], {"spike": 2.5}),
        (["--limit", "7"], {"limit": 7}),
        (["--betas", "0.8", "0.9"], {"betas": (0.8, 0.9)}),
        (["--names", "x", "--names", "y"], {"names": ("x", "y")}),
        (["--counts", "train=1_000", "--counts", "test=2"], {"counts": {"train": 1000, "test": 2}}),
        (["--folder", "some/where"], {"folder": Path("some/where")}),
        (["--lora-rank", "16"], {"lora": Nested()}),
        (["--no-lora-merge"], {"lora": Nested(merge=False)}),
        (["--lora-layers", "q", "--lora-rank", "2"], {"lora": Nested(rank=2, layers=("q",))}),
    ],
)
def test_what_is_typed_is_what_is_set(run, typed, values):
    settings = run(*typed)
    assert settings == Settings(**values)
    assert settings.model_fields_set == set(values)
    assert set(run(*typed, only_typed=True)) == set(values)


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        (["--top-k", "0"], ["'--top-k' / '-k'"]),
        (["--top-k", "many"], ["--top-k"]),
        (["--mode", "three"], ["--mode", "'one'", "'two'"]),
        (["--share", "1.5"], ["--share: ", "less than 1", "not 1.5"]),
        (["--spike", "high"], ["--spike: ", "valid number", "not 'high'"]),
        (["--lora-rank", "0"], ["--lora-rank"]),
        (["--counts", "train"], ["--counts: 'train' is not KEY=VALUE"]),
        (["--counts", "train=1", "--counts", "train=2"], ["--counts: 'train' is given twice"]),
        (["--counts", "train=few"], ["--counts: ", "valid integer"]),
        (["--mode", "two", "-k", "1"], ["mode two needs a --top-k of at least 2"]),
        (["--tpo-k", "3"], ["No such option", "--top-k"]),
    ],
)
def test_a_refusal_names_the_option(run, typed, parts):
    output = run(*typed, fails=True)
    assert output.startswith("Usage: ")
    for words in parts:
        assert words in output


def test_help_says_what_the_class_says(run):
    shown = " ".join(run("--help").split())
    for words in (
        "Entries: -k, --top-k <int range> Most entries kept. [default: 3; 1<=x<=9]",
        "--mode <one|two> Mode of the work. [default: one]",
        "--quick Whether it is quick. --tail",
        "--tail / --no-tail Whether the tail is kept. [default: tail]",
        "--spike <float|none> Height of a spike. [default: 3.0]",
        "--limit <int range> Limit of the limit. [x>=1]",
        "--betas <float,float>... Both of the betas. [default: 0.9, 0.95]",
        "--names <list[str]> Names of the entries. [default: a, b]",
        "--counts SPLIT=NUMBER Counts by split.",
        "--folder <path> Folder of the work.",
        "--lora-rank <int range> Rank of the nested table. [default: 16; x>=1]",
    ):
        assert words.removeprefix("Entries: ") in shown


def test_options_are_laid_over_a_file(run):
    base = {"top_k": 5, "share": 0.75, "lora": {"rank": 4, "merge": False}}
    settings = run("--share", "0.25", "--lora-rank", "8", only_typed=True, base=base)
    assert settings == Settings(top_k=5, share=0.25, lora=Nested(rank=8, merge=False))
    # Valid only together with the file, and so must not be validated before.
    assert run("-k", "1", only_typed=True, base={"mode": "one"}).top_k == 1
    assert "--top-k" in run("-k", "1", only_typed=True, base={"mode": "two"}, fails=True)
    with pytest.raises(InvalidInputError, match=r"x\.toml"):
        run(only_typed=True, base={"top_k": 0})
    with pytest.raises(InvalidInputError, match="Did you mean 'top_k'"):
        run("--quick", only_typed=True, base={"topk": 4})


class Tables(Frozen):
    sources: tuple[Nested, ...] = Field(description="Tables of the sources.")
    top_k: int = Field(default=1, description="Most entries kept.")


class Related(Frozen):
    top_k: int = Field(
        default=1, description="Entries kept.", json_schema_extra={"names": ["--keep"]}
    )
    rule: str = Field(default="top", description="Selects `top_k` entries, as `other` does.")


def test_help_names_other_settings_by_their_options(run):
    shown = " ".join(run("--help", settings=Related).split())
    assert "Selects `--keep` entries, as `other` does." in shown


def test_what_no_option_can_express_is_skipped(run):
    with pytest.raises(TypeError, match=r"sources is a .*; skip it"):
        list(setting_options(Tables))
    assert [option.name for option in setting_options(Tables, skip={"sources"})] == ["--top-k"]

    class Undescribed(Frozen):
        top_k: int = 1

    with pytest.raises(TypeError, match="top_k has no description"):
        list(setting_options(Undescribed))


def command_of(entry):
    module, _, function = entry.target.partition(":")
    return getattr(importlib.import_module(f"fusestore_cli.{module}"), function)


def converted_commands() -> dict[str, tuple[SettingOption, ...]]:
    """Commands with options made of a settings class, and these options."""
    commands = {entry.name: command_of(entry) for entry in COMMANDS}
    return {
        name: command.setting_options
        for name, command in commands.items()
        if hasattr(command, "setting_options")
    }


def settings_classes():
    """Every settings class that stands beside a stage."""
    classes = set()
    for found in pkgutil.walk_packages(fusestore.__path__, "fusestore."):
        if found.name.endswith((".settings", ".recipe")):
            for value in vars(importlib.import_module(found.name)).values():
                if inspect.isclass(value) and issubclass(value, Frozen) and value is not Frozen:
                    classes.add(value)
    return sorted(classes, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("settings", settings_classes(), ids=lambda cls: cls.__name__)
def test_every_setting_is_described_by_a_whole_phrase(settings):
    described = {name: field.description or "" for name, field in settings.model_fields.items()}
    wrong = {
        name: text
        for name, text in described.items()
        if not (text[:1].isupper() and text.endswith(".") and len(text.split()) >= 3)
    }
    assert wrong == {}


def test_no_command_writes_an_option_of_a_setting_by_hand():
    assert "capture" in converted_commands()
    for entry in COMMANDS:
        flags = [flag for p in LazyCommand(entry).load().params for flag in p.opts]
        assert len(flags) == len(set(flags)), entry.name
        options = converted_commands().get(entry.name, ())
        by_hand = inspect.signature(inspect.unwrap(command_of(entry))).parameters
        if options:
            assert not set(by_hand) & {option.parameter for option in options}, entry.name


def test_capture_has_every_setting():
    options = converted_commands()["capture"]
    assert {option.path[0] for option in options} == set(CaptureSettings.model_fields)
