"""Small generated data sets for tests of batches, training and ranking."""

from pathlib import Path

import numpy as np

from benchmark.data.preparation import prepare
from benchmark.data.sources import DatasetDefinition


def write_csv(folder: Path, users: int = 40, items: int = 30, seed: int = 0) -> Path:
    """Users who walk through the catalogue in steps of 1 to 3: easy to learn from the last item, hard from counts."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["item_id,user_id,timestamp"]
    for user in range(users):
        steps = random.integers(1, 4, size=random.integers(6, 20)).cumsum() + random.integers(items)
        rows += [f"i{step % items:03d},u{user:03d},{1_000_000 + 1000 * n}" for n, step in enumerate(steps)]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    titles = [f"i{item:03d},Title number {item} of {items}" for item in range(items)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *titles]) + "\n")
    return folder


def prepared(folder: Path, protocol: str = "hllm", **options: int) -> Path:
    """A prepared data set of generated interactions; returns its folder."""
    raw = write_csv(folder / "raw", **options)
    definition = DatasetDefinition.model_validate(
        {"name": "small", "reader": "csv", "folder": raw, "text_fields": ["title"], "licence": "generated"}
    )
    prepare(definition, protocol, folder / protocol, "fail")
    return folder / protocol
