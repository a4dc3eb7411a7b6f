"""Configuration: what resolves, what decides a run's id, and what each mistake is told."""

from pathlib import Path

import pytest
import yaml

from benchmark.errors import UserError
from benchmark.experiments import Configuration, dump_run, load_run_file, merge
from benchmark.settings import read_yaml

ROOT = Path(__file__).parent.parent

FILES = {
    "datasets.yaml": {"small": {"reader": "csv", "folder": "raw", "licence": "generated"}},
    "methods/walker.yaml": {"label": "Walker", "class": "baselines.x.X", "model": {"width": 4}, "source": "none"},
    "presets/tiny.yaml": {
        "description": "tests",
        "seeds": [1, 2],
        "training": {
            "sequence_length": 5,
            "global_batch": 4,
            "negatives": {"count": 8},
            "optimizer": {"learning_rate": 0.01, "weight_decay": 0},
            "epochs": 3,
            "patience": 2,
        },
        "methods": {"walker": {"model": {"layers": 2}}},
    },
    "tables/table9.yaml": {
        "title": "a table",
        "metrics": ["recall@10"],
        "presets": {
            "tiny": [
                {
                    "dataset": "small",
                    "reference": "Walker",
                    "rows": [
                        {"method": "walker"},
                        {"method": "walker", "variant": "wide", "model": {"width": 8}, "training": {"epochs": 9}},
                    ],
                }
            ]
        },
    },
}


def configuration(folder, change=lambda files: None):
    files = yaml.safe_load(yaml.safe_dump(FILES))
    change(files)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return Configuration(folder)


def test_rows_resolve_layer_by_layer(tmp_path):
    runs = configuration(tmp_path).plan("table9", "tiny").runs()
    assert [(run.label, run.seed) for run in runs] == [
        ("Walker", 1), ("Walker", 2), ("Walker (wide)", 1), ("Walker (wide)", 2)
    ]  # fmt: skip
    assert runs[0].model == {"width": 4, "layers": 2}
    assert runs[2].model == {"width": 8, "layers": 2}
    assert (runs[0].training.epochs, runs[2].training.epochs) == (3, 9)
    assert runs[0].evaluation.sequence_length == 5


def test_the_id_covers_what_decides_the_result_and_nothing_else(tmp_path):
    first = configuration(tmp_path).plan("table9", "tiny").runs()[0]
    assert len({run.id for run in configuration(tmp_path).plan("table9", "tiny").runs()}) == 4

    def slower(files):
        files["presets/tiny.yaml"]["execution"] = {"threads": 2, "item_chunk": 64, "device": "cpu"}
        files["presets/tiny.yaml"]["description"] = "other words"
        files["datasets.yaml"]["small"]["licence"] = "other words"

    assert configuration(tmp_path, slower).plan("table9", "tiny").runs()[0].id == first.id
    for key, value in [("epochs", 4), ("global_batch", 8), ("negatives", {"count": 9})]:

        def change(files, key=key, value=value):
            files["presets/tiny.yaml"]["training"][key] = value

        assert configuration(tmp_path, change).plan("table9", "tiny").runs()[0].id != first.id

    def other_data(files):
        files["datasets.yaml"]["small"]["folder"] = "elsewhere"

    assert configuration(tmp_path, other_data).plan("table9", "tiny").runs()[0].id != first.id


def test_run_file_round_trip(tmp_path):
    run = configuration(tmp_path / "config").plan("table9", "tiny").runs()[0]
    path = tmp_path / "run.yaml"
    path.write_text(dump_run(run))
    assert load_run_file(path) == run


WALKERS = ("tables/table9.yaml", "presets", "tiny", 0, "rows")


def test_a_row_starts_from_the_run_of_a_row_above_with_the_same_seed(tmp_path):
    def change(files):
        set_at((*WALKERS, 1, "starts_from"), {"row": "Walker", "parts": ["table"], "cached_items": True})(files)

    first, second = configuration(tmp_path, change).plan("table9", "tiny").blocks[0].rows
    assert [run.starts_from.run for run in second.runs] == [run.id for run in first.runs]
    assert (second.runs[0].starts_from.parts, second.runs[0].starts_from.cached_items) == (["table"], True)

    def other_source(files):
        change(files)
        set_at((*WALKERS, 0, "training"), {"epochs": 7})(files)

    changed = configuration(tmp_path, other_source).plan("table9", "tiny").blocks[0].rows[1]
    assert changed.runs[0].id != second.runs[0].id


def test_a_users_own_file_has_the_last_word(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text(yaml.safe_dump({
        "seeds": [5], "training": {"epochs": 2}, "execution": {"threads": 3},
        "methods": {"walker": {"model": {"layers": 9}}}, "rows": {"Walker (wide)": {"training": {"epochs": 1}}},
    }))  # fmt: skip
    configuration(tmp_path / "config")
    made = Configuration(tmp_path / "config", own)
    first, wide = made.plan("table9", "tiny").runs()
    assert (first.seed, first.training.epochs, wide.training.epochs) == (5, 2, 1)
    assert (first.model, wide.model["width"], first.execution.threads) == ({"width": 4, "layers": 9}, 8, 3)
    assert [run.seed for run in made.plan("table9", "tiny", [6]).runs()] == [6, 6]
    own.write_text("trainings: {}")
    with pytest.raises(UserError, match=r"mine\.yaml: trainings: is not a known setting"):
        Configuration(tmp_path / "config", own)


def set_at(path, value):
    def change(files):
        at = files
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value

    return change


BLOCK = ("tables/table9.yaml", "presets", "tiny", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at(("presets/tiny.yaml", "seed"), 3), r"tiny\.yaml: seed: is not a known setting"),
        (set_at(("presets/tiny.yaml", "training", "epoch"), 3), r"training\.epoch: is not a known setting"),
        (set_at(("presets/tiny.yaml", "training", "epochs"), "many"), r"training\.epochs: .*valid integer"),
        (set_at(("presets/tiny.yaml", "training", "negatives"), {"count": 0}), r"negatives\.count: .*greater than 0"),
        (set_at(("presets/tiny.yaml", "seeds"), []), "seeds: .*at least 1"),
        (set_at((*BLOCK, "dataset"), "absent"), r"datasets\.yaml has no data set 'absent'; it has: small"),
        (set_at((*BLOCK, "reference"), "Runner"), "reference 'Runner' is no row's label"),
        (set_at((*BLOCK, "protocol"), "meta"), "protocol meta has no validation events"),
        (set_at((*BLOCK, "rows", 1), {"method": "walker"}), "more than one row is labelled 'Walker'"),
        (
            lambda files: files[BLOCK[0]]["presets"]["tiny"].append(files[BLOCK[0]]["presets"]["tiny"][0]),
            "block 2: another block on small has the reference 'Walker' too",
        ),
        (set_at((*BLOCK, "rows", 0, "method"), "flyer"), r"flyer\.yaml does not exist; .* has: walker"),
        (
            set_at((*BLOCK, "rows", 0, "starts_from"), {"row": "Walker (wide)"}),
            r"row 'Walker': starts_from names 'Walker \(wide\)', which is no row above it; they are: none",
        ),
        (set_at(("presets/tiny.yaml", "training", "epochs"), 0), "epochs is 0: say in starts_from which run's weights"),
        (set_at(("presets/tiny.yaml", "training", "objective"), "bpr"), "objective bpr takes one negative a position"),
        (
            set_at((*BLOCK, "choices"), {"training.patienec": "?"}),
            "choices names training.patienec, and the run has no",
        ),
        (lambda files: files.update({"presets/tiny.yaml": "- a list"}), "must hold a mapping"),
        (lambda files: files.update({"presets/tiny.yaml": "a: [1"}), "is not valid YAML.*line 1"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_file_and_key(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        configuration(tmp_path, change).plan("table9", "tiny")
    assert "\n" not in str(caught.value)


def test_unknown_preset_and_table(tmp_path):
    made = configuration(tmp_path)
    with pytest.raises(UserError, match=r"big\.yaml does not exist; .* has: tiny"):
        made.plan("table9", "big")
    with pytest.raises(UserError, match=r"table1\.yaml does not exist; .* has: table9"):
        made.plan("table1", "tiny")


def test_merge_goes_key_by_key():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"d": None}) == {"a": {"b": 3, "c": 2}, "d": None}


def test_every_committed_table_resolves_on_every_preset():
    made = Configuration(ROOT / "config")
    for preset in (path.stem for path in (ROOT / "config" / "presets").glob("*.yaml")):
        for table in made.tables(preset):
            plan = made.plan(table, preset)
            assert plan.runs()
            for block in plan.blocks:
                assert len({row.runs[0].id for row in block.rows}) == len(block.rows), "two rows are the same run"


def test_read_yaml_says_which_file(tmp_path):
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match=r"bad\.yaml is not valid YAML"):
        read_yaml(tmp_path / "bad.yaml")
