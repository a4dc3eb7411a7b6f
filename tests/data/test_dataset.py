"""The prepared folder: what is read from it, and that a half-written one never looks whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from generate import generate

from benchmark.data import preparation
from benchmark.data.dataset import DataCard, load_dataset, training_events
from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError
from benchmark.files import write_atomically

FILES = ("items.npy", "timestamps.npy", "offsets.npy", "split.npy", "users.parquet", "items.parquet", "dataset.json")
PREPARES = "python -m benchmark prepare made --protocol hllm"


@pytest.fixture
def definition(tmp_path):
    generate(tmp_path / "raw", interactions=600, users=60, items=40, seed=1)
    return DatasetDefinition(name="made", reader="csv", folder=tmp_path / "raw", licence="made")


@pytest.mark.parametrize("protocol", ["hllm", "meta"])
def test_cases_and_training_part_cover_every_event_once(definition, tmp_path, protocol):
    prepare(definition, protocol, tmp_path / protocol)
    dataset = load_dataset(tmp_path / protocol)
    trained, test = training_events(dataset.offsets, dataset.split), dataset.cases("test")
    validation = dataset.cases("validation")
    assert len(test) == dataset.user_count
    assert len(validation) == (dataset.user_count if protocol == "hllm" else 0)
    frequency = np.zeros(dataset.item_count, np.int64)
    for user, (start, end) in enumerate(zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)):
        events = dataset.items[start:end].tolist()
        times = dataset.timestamps[start:end].tolist()
        held_out = 2 if protocol == "hllm" else 1
        assert trained[start:end].tolist() == [True] * (len(events) - held_out) + [False] * held_out
        np.add.at(frequency, events[:-held_out], 1)
        assert dataset.items[test.history_start[user] : test.history_end[user]].tolist() == events[:-1]
        assert (test.user[user], test.target[user], test.request_timestamp[user]) == (user, events[-1], times[-1])
        if protocol == "hllm":
            assert dataset.items[validation.history_start[user] : validation.history_end[user]].tolist() == events[:-2]
            assert (validation.target[user], validation.request_timestamp[user]) == (events[-2], times[-2])
    assert dataset.training_frequency().tolist() == frequency.tolist()
    assert dataset.card.training_interactions == frequency.sum()


def test_arrays_are_memory_mapped_and_cannot_be_changed(definition, tmp_path):
    prepare(definition, "hllm", tmp_path / "hllm")
    dataset = load_dataset(tmp_path / "hllm")
    assert isinstance(dataset.items.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        dataset.items[0] = 1
    with pytest.raises(ValueError, match="neither validation nor test"):
        dataset.cases("train")
    with pytest.raises(UserError, match="no text field 'tag'; its fields are: title"):
        dataset.item_texts(["tag"])


def test_a_folder_written_in_part_never_looks_whole(definition, tmp_path, monkeypatch):
    folder = tmp_path / "made" / "hllm"
    prepare(definition, "hllm", folder)  # an earlier, whole one stands there
    for stop in range(len(FILES)):
        written = []

        def until(path, write, written=written, stop=stop):
            if len(written) == stop:
                path.with_name("half").write_bytes(b"half")
                raise KeyboardInterrupt
            written.append(path.name)
            write_atomically(path, write)

        monkeypatch.setattr(preparation, "write_atomically", until)
        with pytest.raises(KeyboardInterrupt):
            prepare(definition, "hllm", folder)
        monkeypatch.undo()
        assert written == list(FILES[:stop])
        with pytest.raises(UserError, match=PREPARES):
            load_dataset(folder)
    prepare(definition, "hllm", folder)
    assert load_dataset(folder).user_count


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_folder_is_an_error_that_names_the_command(definition, tmp_path, name, damage):
    folder = tmp_path / "made" / "hllm"
    prepare(definition, "hllm", folder)
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "missing":
        changed = {"empty": b"", "cut": content[: len(content) // 2], "foreign": b"{}"}[damage]
        (folder / name).write_bytes(changed)
    with pytest.raises(UserError, match=PREPARES):
        load_dataset(folder)


def test_arrays_of_another_preparation_are_refused(definition, tmp_path):
    folder = tmp_path / "made" / "hllm"
    card = prepare(definition, "hllm", folder)
    np.save(folder / "items.npy", np.zeros(card.counts.interactions - 1, np.int32))
    with pytest.raises(UserError, match=r"items\.npy"):
        load_dataset(folder)
    np.save(folder / "items.npy", np.zeros(card.counts.interactions, np.int64))
    with pytest.raises(UserError, match=r"items\.npy"):
        load_dataset(folder)


def test_another_format_is_refused(definition, tmp_path):
    folder = tmp_path / "made" / "hllm"
    card = prepare(definition, "hllm", folder)
    assert DataCard.from_json(card.to_json()) == card
    (folder / "dataset.json").write_text(card.to_json().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match="its format is 2"):
        load_dataset(folder)


def test_loading_needs_neither_polars_nor_pydantic_nor_torch(definition, tmp_path):
    prepare(definition, "hllm", tmp_path / "hllm")
    code = (
        "import sys\n"
        "for name in ('polars', 'pydantic', 'torch', 'yaml'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from benchmark.data.dataset import load_dataset\n"
        "dataset = load_dataset(Path(sys.argv[1]))\n"
        "print(len(dataset.cases('test')), len(dataset.item_texts()), len(dataset.user_ids()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hllm")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    card = load_dataset(tmp_path / "hllm").card
    assert done.stdout.split() == [str(card.counts.users), str(card.counts.items), str(card.counts.users)]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fails(temporary):
        temporary.write_text("new, in part")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, fails)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_a_folder_is_an_error(definition, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(definition, "hllm", tmp_path / "file" / "hllm")
