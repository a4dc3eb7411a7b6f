"""Fuzzed configurations and data files: each works or ends with one clear sentence, and changes nothing finished."""

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml
from fuzzing import FIELDS, TEXTS, mutated_text, mutated_tree
from training.interactions import write_csv

from benchmark.data.dataset import Protocol
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.data.text import TextSettings
from benchmark.errors import UserError
from benchmark.experiments import Configuration, dump_run
from benchmark.training.registry import model_settings

ROOT = Path(__file__).parent.parent
EACH = 200
BATCHES = 4  # for pytest's workers


def one_sentence(error):
    text = str(error)
    assert text.strip()
    assert "\n" not in text
    assert len(text) < 1500
    return text


def snapshot(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """A copy of config/, and its (table, preset) pairs."""
    folder = tmp_path_factory.mktemp("configuration") / "config"
    shutil.copytree(ROOT / "config", folder)
    made = Configuration(folder)
    presets = [path.stem for path in (folder / "presets").glob("*.yaml")]
    return folder, sorted((table, preset) for preset in presets for table in made.tables(preset))


def files_of(folder, table, preset):
    """The files that decide a table's runs."""
    rows = [row for block in Configuration(folder).table(table).presets[preset] for row in block.rows]
    methods = sorted({f"methods/{row.method}.yaml" for row in rows})
    return ["datasets.yaml", f"tables/{table}.yaml", f"presets/{preset}.yaml", *methods]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_fuzzed_configuration_plans_or_is_refused_in_one_sentence(configuration, batch):
    folder, pairs = configuration
    refused = 0
    for seed in range(batch, EACH, BATCHES):
        choose = random.Random(seed)
        table, preset = choose.choice(pairs)
        path = folder / choose.choice(files_of(folder, table, preset))
        text = path.read_text(encoding="utf-8")
        if choose.random() < 0.6:
            tree = mutated_tree(yaml.safe_load(text), choose)
            path.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(mutated_text(text, choose, TEXTS))
        try:
            for run in Configuration(folder).plan(table, preset).runs():
                model_settings(run.class_, run.model, run.id)
                TextSettings.from_mapping(run.text or {})
        except UserError as error:
            one_sentence(error)
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}, {path.name}: {error!r}")
        finally:
            path.write_text(text, encoding="utf-8")
    assert EACH / BATCHES * 0.3 < refused < EACH / BATCHES  # otherwise the mutations are too harsh or too mild


@pytest.fixture(scope="module")
def raw_data(tmp_path_factory):
    """Small raw files of both readers, and every prepared form of them."""
    folder = tmp_path_factory.mktemp("raw")
    csv = write_csv(folder / "csv", users=8, items=6)
    atomic = folder / "movielens"
    atomic.mkdir()
    rows = [line.split(",") for line in (csv / "interactions.csv").read_text().splitlines()[1:]]
    inter = [f"{user}\t{item}\t3\t{time}" for item, user, time in rows]
    items = [f"i{item:03d}\tTitle {item}" for item in range(6)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (atomic / "interactions.csv").write_text("\n".join([header, *inter, ""]))
    (atomic / "items.csv").write_text("\n".join(["item_id:token\ttitle:token_seq", *items, ""]))
    for reader in ("csv", "movielens"):
        for protocol in get_args(Protocol):
            prepare(definition(reader, folder / reader), protocol, folder / f"{reader}-{protocol}")
    return folder


def definition(reader, folder):
    content = {"name": "fuzzed", "reader": reader, "folder": folder, "licence": "generated", "text_fields": ["title"]}
    return DatasetDefinition.model_validate(content)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_fuzzed_data_file_is_prepared_or_refused_and_leaves_what_was_prepared(raw_data, tmp_path, batch):
    refused = 0
    for seed in range(batch, EACH, BATCHES):
        choose = random.Random(seed)
        reader, protocol = choose.choice(("csv", "movielens")), choose.choice(get_args(Protocol))
        case = tmp_path / str(seed)
        shutil.copytree(raw_data / reader, case)
        shutil.copytree(raw_data / f"{reader}-{protocol}", case / "prepared")
        before = snapshot(case / "prepared")
        path = case / choose.choice(("interactions.csv", "items.csv"))
        path.write_bytes(mutated_text(path.read_text(), choose, FIELDS))
        try:
            prepare(definition(reader, case), protocol, case / "prepared", choose.choice(("fail", "fail", "drop")))
        except UserError as error:
            one_sentence(error)
            assert snapshot(case / "prepared") == before
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}, {path.name}: {error!r}")
    assert EACH / BATCHES * 0.2 < refused < EACH / BATCHES


def verb(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmark", *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip


def refused_in_one_line(done, case):
    assert done.returncode == 1, (case, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, (case, done.stderr)
    assert "error: " in done.stderr


def test_a_fuzzed_run_or_data_file_is_refused_by_the_command_line_and_changes_no_result(configuration, raw_data):
    """Settings of a finished run and a prepared data set's raw file, changed in ways that never work."""
    folder, home = configuration[0], configuration[0].parent
    run = next(run for run in Configuration(folder).plan("table7", "laptop").runs() if run.method == "popularity")
    finished = home / "finished"
    finished.mkdir()
    for name in ("model.safetensors", "ranks.parquet", "metrics.csv", "training.csv", "provenance.json"):
        (finished / name).write_text("finished")
    before = snapshot(finished)
    text = dump_run(run)
    for number, changed in enumerate((
        text.replace("seed: 2020", "seed: 2021"), text.replace("epochs: ", "epochs: 1"), text[: len(text) // 2],
        text.replace("baselines.popularity.Popularity", "os.system"),
    )):  # fmt: skip
        assert changed != text
        (finished / "run.yaml").write_text(changed)
        refused_in_one_line(verb(home, ("train", "rank")[number % 2], finished / "run.yaml"), changed)
        (finished / "run.yaml").unlink()
        assert {name: snapshot(finished)[name] for name in before} == before

    (folder / "datasets.yaml").write_text(
        yaml.safe_dump({"raw": {"reader": "csv", "folder": str(home / "raw"), "licence": "generated"}})
    )
    good = (raw_data / "csv/interactions.csv").read_text()
    shutil.copytree(raw_data / "csv", home / "raw")
    assert verb(home, "prepare", "raw").returncode == 0
    before = snapshot(home / "data/raw/hllm")
    for changed in (good + '"', good.replace("user_id", "user"), good + "i000,u000,soon\n"):
        (home / "raw/interactions.csv").write_text(changed)
        refused_in_one_line(verb(home, "prepare", "raw"), changed[-40:])
        assert snapshot(home / "data/raw/hllm") == before
