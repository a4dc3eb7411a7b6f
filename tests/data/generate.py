"""Make a data set of any size in the csv layout, the same for the same seed.

    python -m tests.data.generate FOLDER --interactions 10000000 --users 700000 --items 690000 --seed 1

Ids look like Amazon's. Users' and items' popularity is skewed; timestamps are whole days, so that ties are common.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl


def generate(folder: Path, *, interactions: int, users: int, items: int, seed: int) -> None:
    """Write interactions.csv and items.csv; every user has an interaction or more if there are enough of them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.PCG64(seed))
    user = np.concatenate([np.arange(min(users, interactions)), _skewed(random, users, interactions - users)])
    user, item = random.permutation(user), _skewed(random, items, interactions)
    time = random.integers(900_000_000, 1_400_000_000, interactions) // 86_400 * 86_400
    user_ids, item_ids = _ids("A", users, seed + 1), _ids("B", items, seed + 2)
    frame = pl.DataFrame({"item_id": item_ids.gather(item), "user_id": user_ids.gather(user), "timestamp": time})
    frame.write_csv(folder / "interactions.csv")
    titles = pl.Series("title", [f"Item {number}, {'large' if number % 3 else 'small'}" for number in range(items)])
    pl.DataFrame({"item_id": item_ids, "title": titles}).write_csv(folder / "items.csv")


def _skewed(random: np.random.Generator, size: int, count: int) -> np.ndarray:
    """(count,) integers below size, the low ones more frequent."""
    return (size * random.random(max(count, 0)) ** 2).astype(np.int64)


def _ids(first: str, size: int, seed: int) -> pl.Series:
    """(size,) distinct ids of 13 letters and digits, in no particular order."""
    random = np.random.Generator(np.random.PCG64(seed))
    digits = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)
    numbers = random.permutation(size)[:, None] // 36 ** np.arange(6) % 36  # distinct
    letters = np.concatenate([random.integers(0, 36, (size, 6)), numbers], axis=1)
    return pl.Series([first + row.tobytes().decode() for row in digits[letters]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--interactions", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=700_000)
    parser.add_argument("--items", type=int, default=690_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    generate(given.folder, interactions=given.interactions, users=given.users, items=given.items, seed=given.seed)
