"""A folder of finished tables for reports: simulated methods with seeds, groups of users and training curves."""

import csv
import json
from pathlib import Path

import numpy as np
from conftest import write_run

from benchmark.analysis.runs import load_run
from benchmark.analysis.tables import TableBlock, TableRow, TableSpec, evaluate_table, write_table
from benchmark.experiments import Configuration

ROOT = Path(__file__).parents[2]
METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50")
METHODS = {"popularity": "Popularity", "hstu": "HSTU & <script>alert(1)</script>", "sasrec": "SASRec", "hllm": "HLLM"}
USERS = 600


def groups():
    generator = np.random.default_rng(3)
    return {
        "history_length": generator.integers(5, 200, USERS),
        "target_frequency": np.maximum(generator.integers(-60, 400, USERS), 0),
    }


def write_curve(folder, seed, epochs=6):
    generator = np.random.default_rng(seed)
    lines = ["epoch,step,loss,ndcg@10,ndcg@200,seconds"]
    for epoch in range(1, epochs + 1):
        score = 0.05 * epoch / (epoch + 2) + generator.normal(0, 0.001)
        lines.append(f"{epoch},{10 * epoch},{5 / epoch},{score},{2 * score},{2.5 * epoch}")
    (folder / "training.csv").write_text("\n".join(lines) + "\n")


def evaluated(root, seeds=(1, 2), name="table7"):
    """Runs below root/runs and the table of them, evaluated: two blocks, of which the second is one row alone."""
    rows = []
    for method, label in METHODS.items():
        runs = []
        for seed in seeds:
            record = {"best_epoch": 4, "items_per_second": 1e4, "peak_memory_bytes": 2**30, "python": "3.11.7",
                      "packages": {"torch": "2.13.0"}, "platform": "Linux"}  # fmt: skip
            folder = write_run(root / "runs", method, seed, record=record, columns=groups())
            if method != "popularity":
                write_curve(folder, seed)
            runs.append(load_run(folder))
        rows.append(TableRow(label, tuple(runs)))
    alone = TableRow("HLLM", (load_run(other_split(root)),))
    first = TableBlock("toy", "toy", tuple(rows), METHODS["hstu"])
    second = TableBlock("toy", "toy", (alone,), "HLLM")
    return evaluate_table(TableSpec(name, name, METRICS), [first, second])


def other_split(root):
    folder = write_run(root / "runs", "hllm", 9, record={"dataset_hash": "e" * 64}, settings={"seed": 1})
    run = folder.parent / "other-split"
    folder.rename(run)
    (run / "run.yaml").write_text((run / "run.yaml").read_text().replace(folder.name, run.name))
    return run


def write_report_folder(folder, name="mine"):
    """A table's files and its runs."""
    write_table(evaluated(folder, name=name), folder)
    return folder


def configuration():
    return Configuration(ROOT / "config")


def edit_csv(path, change):
    """Rewrite a CSV file with change(row) called on every row."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    for row in rows:
        change(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_card(data, split_sha256="f" * 64, dataset="toy"):
    """A data card below data."""
    folder = data / dataset / "hllm"
    folder.mkdir(parents=True)
    card = {
        "format_version": 1, "name": dataset, "protocol": "hllm",
        "counts": {"users": 600, "items": 1234, "interactions": 56789}, "training_interactions": 55589,
        "event_times": True, "tie_rate": 0.125, "tied_targets": 0.25,
        "unhittable_targets": {"validation": 0.0, "test": 0.0625},
        "sequence_length": {"mean": 94.6, "median": 60.0, "max": 512}, "text_fields": ["title"],
        "items_without_text": 7, "dropped": {"short users": 11}, "filter": "none",
        "sources": [{"file": "toy.csv", "bytes": 1000, "sha256": "ab" * 32}], "split_sha256": split_sha256,
        "licence": "of the toy", "terms": None, "created_by": {"numpy": "2"},
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(card))
