"""The speed verb on a processor, its synthetic steps, and its CSV file."""

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmark import speed
from benchmark.cli import app
from benchmark.errors import UserError
from benchmark.speed import DrawnOn, _arithmetic, append_rows
from benchmark.speed_cases import load_case, synthetic_batch, synthetic_catalogue

ROOT = Path(__file__).parent.parent
FILE = ROOT / "config" / "speed.yaml"


def case(method="hllm-1b", shape="books"):
    return load_case(FILE, method, shape, device=torch.device("cpu"), compiled=False)


def test_the_shapes_are_those_that_the_released_model_was_measured_at():
    books, pixel = synthetic_batch(case(), 0), synthetic_batch(case(shape="pixel8m"), 0)
    for batch, users, slots, negatives in ((books, 8, 51, 32), (pixel, 16, 11, 160)):
        assert len(batch.sequences) == users
        assert batch.sequences.items.numel() == users * (slots - 1)
        assert batch.negatives.shape == (negatives,)
        first = batch.sequences.offsets[1]
        assert torch.equal(batch.targets[: first - 1], batch.sequences.items[1:first])
    ids = synthetic_batch(case("sasrec", "books-ids"), 0)
    assert ids.negatives.shape == (128 * 50, 512)
    assert ids.negatives.max() < 686_624
    lengths = synthetic_catalogue(case()).token_offsets.diff()
    assert lengths.min() >= 8
    assert lengths.max() == 256
    assert float(lengths.float().mean()) == pytest.approx(144, abs=2)  # 63,826 tokens of 440 items, [ITEM] included
    assert float(lengths.float().median()) == pytest.approx(130, abs=2)


def test_real_lengths_have_the_wanted_mean():
    lengths = torch.cat([synthetic_batch(case(shape="books-real"), step).sequences.lengths + 1 for step in range(200)])
    assert float(lengths.float().mean()) == pytest.approx(14.5, abs=0.5)
    assert lengths.min() >= 2
    assert 45 < lengths.max() <= 51


def test_the_same_seed_gives_the_same_steps():
    a, b, other = (synthetic_batch(case(), step) for step in (3, 3, 4))
    assert torch.equal(a.sequences.items, b.sequences.items)
    assert not torch.equal(a.sequences.items, other.sequences.items)


def test_the_verb_prints_json_and_appends_to_a_csv(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    out = tmp_path / "speed.csv"
    options = ["--method", "tiny-hllm", "--shape", "tiny", "--warmup", "1", "--steps", "2", "--out", str(out)]
    more = ["--parts", "train,encode,rank,losses", "--engines", "single,ddp", "--pieces", "1"]
    result = CliRunner().invoke(app, ["speed", *options, *more])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [row["part"] for row in rows] == 2 * ["train", "encode", "rank", "losses"]
    assert [row["engine"] for row in rows] == 4 * ["single"] + 4 * ["ddp"]
    assert rows[7]["largest_difference"] == 0  # one process is the same in both
    assert rows[3]["first_loss"] != rows[3]["last_loss"]
    for row in rows[:2]:
        assert row["tokens_per_second"] / row["items_per_second"] == pytest.approx(
            row["tokens"] / row["items"], rel=0.01
        )
    assert rows[0]["users_per_second"] == pytest.approx(4 / (rows[0]["ms"] / 1000), rel=0.01)
    assert rows[0]["utilisation"] is None  # of a processor
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert [row["git_revision"] for row in written] == [row["git_revision"] for row in rows]


def test_weights_on_the_host_are_drawn_elsewhere_from_the_same_distribution(monkeypatch):
    monkeypatch.setattr(speed, "_DRAWN_AT_ONCE", 1 << 20)
    with DrawnOn(torch.device("cpu")) as drawn:
        torch.manual_seed(1)
        layer, small = nn.Linear(1300, 1000), nn.Linear(3, 2)
        normal = nn.init.normal_(torch.empty(1500, 1000), 2.0, 0.5)
    assert drawn._staging.numel() == 1 << 20
    weight = layer.weight.detach()
    assert weight.is_leaf
    assert float(weight.abs().max()) == pytest.approx(1300**-0.5, rel=1e-3)
    assert float(weight.std()) == pytest.approx((3 * 1300) ** -0.5, rel=1e-2)
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((2.0, 0.5), rel=1e-2)
    assert len(normal.unique()) > 1_000_000  # no piece repeats another one
    assert small.weight.abs().max() <= 3**-0.5


def test_shapes_are_measured_with_one_model_on_the_host(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ["--method", "tiny-hllm", "--shape", "tiny,tiny", "--parts", "train", "--warmup", "0", "--steps", "1"]
    result = CliRunner().invoke(app, ["speed", *options, "--engines", "single", "--offload", "optimizer"])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [row["offload"] for row in rows] == ["optimizer", "optimizer"]
    for row in rows:
        assert 0 < row["update_ms"] < row["ms"]
        assert row["copies_ms"] > 0
        assert 0.1 < row["host_memory_gib"] < 20
    with pytest.raises(UserError, match=r"--shape tiny,books: shapes measured with one model"):
        CliRunner().invoke(app, ["speed", "--method", "tiny-hllm", "--shape", "tiny,books"], catch_exceptions=False)


def test_work_counts_weights_that_are_spread_over_processes():
    model = nn.ModuleDict({"part": nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 5, bias=False))})
    assert _arithmetic(model, "part") == 15
    model["part"][1].weight.ds_numel = 30  # as DeepSpeed says it of a weight that it holds half of
    assert _arithmetic(model, "part") == 30


def test_rows_with_other_columns_are_appended(tmp_path):
    append_rows(tmp_path / "s.csv", [{"a": 1, "b": 2}])
    append_rows(tmp_path / "s.csv", [{"a": 3, "c": 4}])
    assert (tmp_path / "s.csv").read_text() == "a,b,c\n1,2,\n3,,4\n"


def test_unknown_names_are_told():
    with pytest.raises(UserError, match=r"has no method 'x'; it has: hllm-1b"):
        case("x")
    with pytest.raises(UserError, match=r"has no shape 'x'; it has: books"):
        case(shape="x")
