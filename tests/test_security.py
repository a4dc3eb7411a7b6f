"""Nothing that is read is executed, no value of a configuration or a command line reaches a shell unquoted, and no
secret of the environment is written anywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from training.interactions import write_csv

from benchmark.data.download import _unpack
from benchmark.data.sources import Sources
from benchmark.errors import UserError
from benchmark.experiments import Configuration
from benchmark.training.registry import method_class

ROOT = Path(__file__).parent.parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
SOURCES = [path for part in ("benchmark", "models", "baselines") for path in sorted((ROOT / part).rglob("*.py"))]
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))

NASTY = ["a b", "a;touch executed", "$(touch executed)", "`touch executed`", "'", '"', "../laptop", "a\nb", "-rf", "*"]

# Calls that run what they are given, and what would have to stand in them to be safe.
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "marshal.loads",
    "shelve.open", "joblib.load", "dill.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "tarfile.open",
    "shutil.unpack_archive", "runpy.run_path", "subprocess.getoutput", "subprocess.getstatusoutput",
}  # fmt: skip
NEEDED = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
FORBIDDEN_ARGUMENTS = {("shell", True), ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_runs_what_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            assert not names & {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "tarfile"}, path
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {}
            if name == "yaml.load" and {ast.unparse(keyword) for keyword in node.keywords} == {
                "Loader=yaml.CSafeLoader"
            }:
                continue  # builds plain values alone, as safe_load does
            for argument in node.keywords:
                if isinstance(argument.value, ast.Constant):
                    given[argument.arg] = argument.value.value
            assert name not in FORBIDDEN_CALLS, (path, node.lineno)
            assert not FORBIDDEN_ARGUMENTS & {(key, value) for key, value in given.items() if value in (True, False)}
            assert not name.endswith((".extractall", ".extract")), (path, node.lineno)
            if name in NEEDED:
                key, value = NEEDED[name]
                assert given.get(key) is value, (path, node.lineno)


def test_every_value_in_a_rules_command_is_quoted_or_cannot_need_it():
    quoted_where_made = {"BENCHMARK", "COMPARE", "GAINS", "RESULTS", "PRESET", "params.preset"}
    quoted_where_made |= {"OPTIONS", "params.options", "resources.options"}
    quoted_where_made |= {"settings", "verb"}  # in store_command, of constrained wildcards and of the rules' own names
    harmless = quoted_where_made | {"resources.nodes", "resources.processes"}
    constrained = re.compile(r"wildcards\.(run|dataset|protocol|table|tokens)|(params|resources)\.table")
    commands = [line for path in RULES for line in path.read_text().splitlines() if "{BENCHMARK}" in line]
    assert len(commands) >= 7
    for command in commands:
        for value in re.findall(r"\{([^}]*)\}", command):
            quoted = value.endswith(":q") or "shlex.quote" in value
            assert value in harmless or quoted or constrained.fullmatch(value), (value, command)


@pytest.mark.parametrize("value", NASTY)
def test_a_name_that_a_shell_or_a_path_would_read_is_no_name(value, tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    made = Configuration(tmp_path / "config")
    for ask in (made.preset, made.method, made.table):
        with pytest.raises(UserError, match="has nothing named"):
            ask(value)
    with pytest.raises(UserError, match="has no data set"):
        made.dataset_definition(value)
    (tmp_path / "config/datasets.yaml").write_text(
        yaml.safe_dump({value: {"reader": "csv", "folder": ".", "licence": ""}})
    )
    with pytest.raises(UserError, match="cannot name a data set"):
        Configuration(tmp_path / "config").dataset_definition("small")


@pytest.mark.parametrize(
    "path",
    ["os.system", "subprocess.run", "models.hllm.__builtins__", "models.pretrained.Path", "benchmark.files.write_text",
     "models...x.Y", "models.$(touch executed).X"],
)  # fmt: skip
def test_a_class_is_one_of_this_projects_methods(path):
    with pytest.raises(UserError, match=r"mend `class`|put the method there"):
        method_class(path)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..", ""])
def test_a_file_that_is_fetched_stays_in_its_data_sets_folder(name):
    with pytest.raises(ValidationError, match="is not a path within the data set's folder"):
        Sources.model_validate({"files": {name: {"url": "https://example.org/x.zip", "path": "x"}}})


def test_an_archive_writes_the_one_file_that_is_asked_for_and_nothing_else(tmp_path):
    archive = tmp_path / "folder/data.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as packed:
        for member in ("../escaped", "/tmp/escaped-from-an-archive", "wanted", "other"):
            packed.writestr(member, member)
    _unpack(archive, "wanted", tmp_path / "folder/raw.csv")
    _unpack(archive, "../escaped", tmp_path / "folder/named.csv")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["data.zip", "named.csv", "raw.csv"]
    assert (tmp_path / "folder/raw.csv").read_text() == "wanted"
    assert not Path("/tmp/escaped-from-an-archive").exists()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The project under a name that a shell would trip over, with a table of two small runs."""
    folder = tmp_path_factory.mktemp("security") / 'it\'s $(touch executed); "here"'
    folder.mkdir()
    for name in ("Snakefile", "workflow", "profiles", "benchmark", "models", "baselines"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config/methods", folder / "config/methods")
    write_csv(folder / "raw; touch executed", users=12, items=8)
    training = {"sequence_length": 5, "global_batch": 8, "negatives": {"count": 4}, "epochs": 1, "patience": 1,
                "optimizer": {"learning_rate": 0.001, "weight_decay": 0}}  # fmt: skip
    files = {
        "data.yaml": {"tests": {"datasets": {"small": ["hllm"]}}},
        "datasets.yaml": {"small": {"reader": "csv", "folder": "raw; touch executed", "licence": "$(touch executed)"}},
        "presets/tests.yaml": {"description": "'; touch executed #", "seeds": [1], "training": training,
                               "execution": {"device": "cpu"}},
        "tables/tiny.yaml": {"title": "`touch executed`", "metrics": ["recall@10"], "presets": {"tests": [
            {"dataset": "small", "reference": "$(touch executed)",
             "rows": [{"method": "popularity", "label": "$(touch executed)"}]}]}},
        "my $(touch executed).yaml": {"training": {"epochs": 2}},
    }  # fmt: skip
    for name, content in files.items():
        (folder / "config" / name).parent.mkdir(exist_ok=True)
        (folder / "config" / name).write_text(yaml.safe_dump(content))
    return folder


def run(folder, *command, **environment):
    return subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def nothing_was_executed(folder):
    return not list(folder.parent.rglob("executed")) and not (ROOT / "executed").exists()


def test_a_workflow_of_nasty_values_runs_and_keeps_its_secrets(checkout):
    secrets = {name: f"secret-{number}-of-{name.lower()}" for number, name in enumerate(
        ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "KAGGLE_KEY"))}  # fmt: skip
    done = run(checkout, SNAKEMAKE, "--cores", 1, "tiny", "--config", "preset=tests",
               "overrides=config/my $(touch executed).yaml", **secrets)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert nothing_was_executed(checkout)
    written = [path for path in checkout.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"provenance.json", "tiny.html", "train.log", "dataset.json"} <= {path.name for path in written}
    for value in secrets.values():
        assert value not in done.stdout + done.stderr
        assert [path for path in written if value.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "option",
    ["preset=tests;touch executed", "preset=$(touch executed)", "preset=../presets/tests", "seeds=1;touch executed",
     "seeds=$(touch executed)", "tables=tiny`touch executed`", "overrides=$(touch executed).yaml"],
)  # fmt: skip
def test_a_nasty_option_of_the_workflow_is_refused_in_one_sentence(checkout, option):
    done = run(checkout, SNAKEMAKE, "--dry-run", "--config", *dict.fromkeys(["preset=tests", option]), "--", "tiny")
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in done.stderr
    assert nothing_was_executed(checkout)


@pytest.mark.parametrize(
    "arguments",
    [["prepare", "$(touch executed)"], ["prepare", "../small"], ["prepare", "small", "--protocol", "../../x"],
     ["resolve", "x;touch executed", "--table", "tiny", "--preset", "tests", "--out", "run.yaml"],
     ["resolve", "x", "--table", "../tables/tiny", "--preset", "tests", "--out", "run.yaml"],
     ["table", "'; touch executed"], ["table", "tiny", "--preset", "`touch executed`"],
     ["table", "tiny", "--preset", "tests", "--seeds", "1;touch executed"], ["train", "$(touch executed)/run.yaml"]],
)  # fmt: skip
def test_a_nasty_argument_is_refused_in_one_sentence(checkout, arguments):
    done = run(checkout, sys.executable, "-m", "benchmark", *arguments)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "error: " in done.stderr
    assert nothing_was_executed(checkout)
