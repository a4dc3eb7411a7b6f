"""What a run recommends: the evaluator's scores and ranks for one user, and histories by title."""

import json
import shutil
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmark.analysis.qualitative import Titles, titles_of
from benchmark.analysis.submission import check_submission
from benchmark.commands.recommend import recommend
from benchmark.data.dataset import load_dataset
from benchmark.data.new_texts import with_new_texts
from benchmark.data.text import TextSettings, item_text, load_tokens, make_tokens, tokens_folder
from benchmark.errors import UserError
from benchmark.evaluation.metrics import read_ranks, write_metrics
from benchmark.evaluation.ranking import RankingSettings, rank_cases, write_ranks
from benchmark.evaluation.recommendation import history_of
from benchmark.evaluation.recommendation import recommend as recommend_items
from benchmark.experiments import Configuration, dump_run
from benchmark.training import registry
from benchmark.training.checkpoint import save_weights
from benchmark.training.trainer import ranking_settings, seeded

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "training"))
from interactions import prepared  # noqa: E402

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data/small/hllm, prepared."""
    folder = tmp_path_factory.mktemp("data")
    return prepared(folder / "small", users=12, items=20).parents[1]


@pytest.fixture(scope="module")
def run_folder(data, tmp_path_factory):
    """Makes the folder of an untrained run of a method, with weights and ranks."""

    def make(method):
        [run] = [r for r in Configuration(ROOT / "config").plan("table7", "laptop").runs() if r.method == method]
        content = yaml.safe_load(dump_run(run))
        content["dataset"] = "small"
        if method == "hllm":
            content["text"]["tokenizer"]["vocabulary_size"] = 300
            for part in ("item_model", "user_model"):
                content["model"][part]["config"] |= TINY
        run = type(run).model_validate(content)
        run = run.model_copy(update={"id": f"small-hllm-{method}-seed2020-{run.identity()}"})
        folder, prepared_folder = tmp_path_factory.mktemp(method), data / "small" / "hllm"
        (folder / "run.yaml").write_text(dump_run(run))
        dataset, catalogue = load_dataset(prepared_folder), registry.Catalogue(20)
        if run.text:
            settings = TextSettings.from_mapping(run.text)
            make_tokens(prepared_folder, settings)
            catalogue = load_tokens(tokens_folder(prepared_folder, settings), 20, "cpu")
        model = seeded(lambda: registry.build(run.class_, run.model, catalogue, 50), 1)
        save_weights(folder / "model.safetensors", model.state_dict())
        cases = dataset.cases("test")
        write_ranks(folder / "ranks.parquet", dataset, cases, rank_cases(model, dataset, cases, ranking_settings(run)))
        return folder, run, model, dataset

    return make


@pytest.fixture(scope="module")
def text_run(run_folder):
    return run_folder("hllm")


@pytest.mark.parametrize("mask", ["whole", "truncated", "none"])
def test_the_ranking_of_one_user_is_the_evaluators(text_run, mask):
    _, _, model, dataset = text_run
    cases, settings = dataset.cases("test"), RankingSettings(sequence_length=4, mask=mask)
    expected = rank_cases(model, dataset, cases, settings)
    for case in range(len(cases)):
        sequence, masked = history_of(dataset, cases, case, settings)
        target = int(cases.target[case])
        found = recommend_items(model, 20, sequence, masked, settings, 20, target)
        assert found.rank == expected.rank[case]
        assert not set(found.items.tolist()) & set(masked.tolist())
        assert len(found.items) == 20 - len(set(masked.tolist()))
        assert (np.diff(found.scores) <= 0).all()
        if expected.hittable[case] and expected.ties[case] == 0:
            assert found.items[int(found.rank) - 1] == target


def test_the_model_runs_in_the_precision_of_the_evaluators(text_run):
    _, _, model, dataset = text_run
    cases, settings = dataset.cases("test"), RankingSettings(sequence_length=4)
    sequence, masked = history_of(dataset, cases, 0, settings)
    rounded = partial(torch.autocast, "cpu", torch.bfloat16)
    found, plain = (
        recommend_items(model, 20, sequence, masked, settings, 20, precision=precision)
        for precision in (rounded, nullcontext)
    )
    with rounded(), torch.no_grad():
        items = model.embed_items(torch.arange(20))
        predicted = model.embed_histories(sequence, items[sequence.items])[sequence.last]
    scores = (model.comparable(predicted).float() @ model.comparable(items).float().T)[0].numpy()
    assert np.abs(found.scores - scores[found.items]).max() < 2e-6
    assert np.abs(plain.scores - scores[plain.items]).max() > 1e-5


def test_a_user_is_shown_with_titles_and_the_held_out_item(text_run, data, capsys):
    folder, _, _, dataset = text_run
    recommend(run=folder, user="u003", titles=False, history=None, top=3, data=data)
    text = capsys.readouterr().out
    titles, cases = titles_of(dataset), dataset.cases("test")
    case = int(np.flatnonzero(np.array(dataset.user_ids())[cases.user] == "u003")[0])
    history, held_out, best = (part.splitlines() for part in text.split("\n\n")[1:4])
    shown = [line.split(maxsplit=1)[1].strip() for line in history[3:]]
    events = dataset.items[int(cases.history_start[case]) : int(cases.history_end[case])]
    assert shown == [titles.full(int(item)) for item in events][-15:] or shown[0].endswith("earlier ones)")
    assert titles.full(int(cases.target[case])) in held_out[3]
    assert len(best) == 3 + 3
    assert "ranks.parquet has the same rank" in text


def test_a_submission_is_checked_against_the_prepared_data(text_run, data, tmp_path):
    source, _, _, dataset = text_run
    folder = Path(shutil.copytree(source, tmp_path / "run"))
    record = {
        "git_revision": "a" * 40, "python": "3.11", "platform": "x", "packages": {}, "device": "CPU", "seed": 2020,
        "parameters": 1, "hours": 0.1, "dataset_hash": dataset.card.split_sha256,
    }  # fmt: skip
    (folder / "provenance.json").write_text(json.dumps(record))
    (folder / "training.csv").write_text("epoch\n")
    write_metrics(folder / "metrics.csv", read_ranks(folder / "ranks.parquet").rank)
    checked = check_submission(folder, data)
    assert (checked.failed, checked.unchecked) == ((), ())
    assert "users, targets, histories and split are those of" in checked.passed[1]
    table = pq.read_table(folder / "ranks.parquet")
    for name, values, message in (
        ("target_item", table["target_item"].to_pylist()[::-1], "target_item is not as in the data set's test"),
        ("history_length", table["history_length"].to_numpy() + 1, "history_length is not the data set's"),
        ("target_frequency", table["target_frequency"].to_numpy() + 1, "target_frequency is not the data set's"),
        ("rank", np.append(table["rank"].to_numpy()[:-1], 21.0), "rank 21 in a catalogue of 20 items"),
    ):
        changed = table.set_column(
            table.column_names.index(name), name, pa.array(values, table.schema.field(name).type)
        )
        pq.write_table(changed, folder / "ranks.parquet")
        write_metrics(folder / "metrics.csv", changed["rank"].to_numpy())
        assert any(message in sentence for sentence in check_submission(folder, data).failed)
    pq.write_table(table, folder / "ranks.parquet")
    write_metrics(folder / "metrics.csv", table["rank"].to_numpy())
    (folder / "provenance.json").write_text(json.dumps(record | {"dataset_hash": "b" * 64}))
    assert any("its split is bbbbbbbbbbbb" in sentence for sentence in check_submission(folder, data).failed)


def test_titles_of_the_catalogue_and_new_ones_are_read(text_run, data, capsys):
    folder, run, model, _ = text_run
    known = ["Title number 3 of 20", "title NUMBER 4 of 20"]
    recommend(run=folder, user=None, titles=True, history=known, top=5, data=data)
    first = capsys.readouterr().out
    assert "new text" not in first
    # The same text, though it is no title: the embedding of what is read, and so the recommendation, is the same.
    settings = TextSettings.from_mapping(run.text)
    store = tokens_folder(data / "small" / "hllm", settings)
    catalogue = load_tokens(store, 20, "cpu")
    more = with_new_texts(catalogue, store, settings, "title", ["Title number 3 of 20", "A film"])
    wide = registry.build(run.class_, run.model, more, 50)
    wide.load_state_dict(model.state_dict())
    wide.eval()
    with torch.no_grad():
        embedded = wide.embed_items(torch.tensor([3, 20, 21]))
    torch.testing.assert_close(embedded[0], embedded[1])
    assert (embedded[0] - embedded[2]).abs().max() > 1e-3
    recommend(run=folder, user=None, titles=True, history=[*known, "A film"], top=5, data=data)
    assert "A film (new text)" in capsys.readouterr().out
    assert item_text({"title": "A film"}, ["title"], settings.prompt).endswith("title: A film")


def test_a_method_without_text_reads_titles_of_its_catalogue_only(run_folder, data, capsys):
    folder, *_ = run_folder("sasrec")
    recommend(run=folder, user=None, titles=True, history=["Title number 3 of 20"], top=2, data=data)
    assert "Recommended, best first" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"reads no text, and its catalogue has no title 'Title number'.*it has, for one"
    ):
        recommend(run=folder, user=None, titles=True, history=["Title number"], top=2, data=data)


@pytest.mark.parametrize(
    ("user", "titles", "history", "message"),
    [
        (None, False, None, "name either --user ID or --titles"),
        ("u003", True, ["a"], "name either"),
        (None, True, None, "name either"),
        ("nobody", False, None, "has no user 'nobody' with a test item"),
    ],
)
def test_a_mistake_is_told(text_run, data, user, titles, history, message):
    with pytest.raises(UserError, match=message):
        recommend(run=text_run[0], user=user, titles=titles, history=history, top=3, data=data)


def test_a_title_that_several_items_have_must_say_which():
    titles = Titles("title", ("Heat", "Heat", "Ghost"), ("1986", "1995", ""))
    with pytest.raises(UserError, match=r"2 items are titled 'heat': Heat \(1986\); Heat \(1995\)"):
        titles.find("heat")
    assert titles.find("Heat (1995)") == 1
    assert titles.find("ghost ") == 2
    assert titles.find("Ghosts") is None
    assert titles.near("Ghosts") == ["Ghost"]
