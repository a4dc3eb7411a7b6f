"""Raw files of the paper's data sets in their real format and, by default, their real size; the same for the same seed.

    python -m tests.data.generate_raw ratings FILE       Amazon Books' ratings, 22,507,155 rows without a header
    python -m tests.data.generate_raw metadata FILE.gz   its metadata, 2,370,585 Python literals, one a line
    python -m tests.data.generate_raw pixel FILE         Pixel8M's interactions, 158,488,652 rows

Popularity is skewed; ratings are sorted by item and their times are whole days, as in the original; PixelRec's rows
come in no order. Metadata of the first items of `ratings` have the ids that stand there.
"""

import argparse
import gzip
import html
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

LETTERS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)
WORDS = """the of a and history love garden war children's house light river O'Brien world night short stories guide
cooking summer secret art life king island dragon modern American letters complete introduction to music café mind red
blue""".split()  # noqa: SIM905


def ids(first: str, size: int, length: int, seed: int) -> pa.Array:
    """(size,) distinct ids of `length` letters and digits, the first letter given, in no particular order."""
    random = np.random.Generator(np.random.PCG64(seed))
    letters = np.empty((size, length), dtype=np.uint8)
    letters[:, 0] = ord(first)
    numbers = random.permutation(size)
    for place in range(1, length):
        letters[:, place] = LETTERS[numbers % 36] if place < 7 else LETTERS[random.integers(0, 36, size)]
        numbers //= 36
    packed = pa.Array.from_buffers(pa.binary(length), size, [None, pa.py_buffer(letters.tobytes())])
    return packed.cast(pa.binary()).cast(pa.string())


def skewed(random: np.random.Generator, size: int, count: int, power: float) -> np.ndarray:
    """(count,) integers below size, the low ones more frequent."""
    return (size * random.random(count) ** power).astype(np.int32)


def write_ratings(path: Path, *, rows: int, users: int, items: int, seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    item = np.sort(skewed(random, items, rows, 2.5))
    user_ids, item_ids = pl.Series(ids("A", users, 14, seed + 1)), pl.Series(ids("0", items, 10, seed + 2)).sort()
    with path.open("wb") as file:
        for start in range(0, rows, 4_000_000):
            chosen = item[start : start + 4_000_000]
            days = random.integers(10_000, 16_300, len(chosen)) * 86_400
            frame = pl.DataFrame(
                {
                    "user": user_ids.gather(skewed(random, users, len(chosen), 2.0)),
                    "item": item_ids.gather(chosen),
                    "rating": random.integers(1, 6, len(chosen)).astype(np.float64),
                    "time": days,
                }
            )
            frame.write_csv(file, include_header=False, float_precision=1)


def write_metadata(path: Path, *, items: int, rated: int, seed: int) -> None:
    """rated: the number of items of `write_ratings` with the same seed; the others have ids of their own."""
    names = pl.Series(ids("0", rated, 10, seed + 2)).sort().to_list()[:items]
    names += [f"B{number:09d}" for number in range(items - len(names))]
    random = np.random.Generator(np.random.PCG64(seed))
    words = random.choice(np.array(WORDS, dtype=object), 1_000_000).tolist()
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=4, mtime=0) as file:
        for start in range(0, items, 10_000):
            lines = [_record(names[n], random, words, names) for n in range(start, min(start + 10_000, items))]
            file.write("".join(lines).encode("ascii"))


def _record(name: str, random: np.random.Generator, words: list[str], names: list[str]) -> str:
    place, *kinds = random.random(5).tolist()
    place = int(place * 900_000)
    record: dict[str, object] = {"asin": name}
    if kinds[0] < 0.9:
        title = " ".join(words[place : place + 3 + place % 9]).capitalize()
        record["title"] = html.escape(title) + (" &amp; other stories" if kinds[0] < 0.02 else "")
    if kinds[1] < 0.6:
        text = " ".join(words[place + 20 : place + 20 + int(20 / (0.08 + kinds[1]))])
        record["description"] = text + ("\nNew edition\x07." if kinds[1] < 0.01 else "")
    record["price"] = round(kinds[2] * 40, 2)
    record["imUrl"] = f"http://ecx.images-amazon.com/images/I/{place:06d}TL8.jpg"
    if kinds[3] < 0.8:
        first = place % len(names)
        also = names[first : first + int(kinds[3] * 60)]
        record["related"] = {"also_bought": also, "buy_after_viewing": also[:4]}
    record["salesRank"], record["categories"] = {"Books": place}, [["Books"]]
    return ascii(record) + "\n"


def write_pixel(path: Path, *, rows: int, users: int, items: int, seed: int) -> None:
    random = np.random.Generator(np.random.PCG64(seed))
    with path.open("wb") as file:
        for start in range(0, rows, 4_000_000):
            count = min(4_000_000, rows - start)
            user = skewed(random, users, count, 1.4)
            ordered = np.arange(start, min(start + count, users))  # every user is there
            user[: len(ordered)] = ordered
            item, time = skewed(random, items, count, 2.2), random.integers(1_590_000_000, 1_670_000_000, count)
            columns = {"item_id": item, "user_id": user, "timestamp": time}
            frame = pl.DataFrame(columns).select(
                pl.format("i{}", "item_id").alias("item_id"), pl.format("u{}", "user_id").alias("user_id"), "timestamp"
            )
            frame.write_csv(file, include_header=start == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["ratings", "metadata", "pixel"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, help="instead of the real number of rows or lines")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.kind == "ratings":
        sizes = {"rows": given.rows or 22_507_155, "users": 8_026_324, "items": 2_330_066}
        write_ratings(given.file, seed=given.seed, **sizes)
    elif given.kind == "metadata":
        write_metadata(given.file, items=given.rows or 2_370_585, rated=2_330_066, seed=given.seed)
    else:
        write_pixel(given.file, rows=given.rows or 158_488_652, users=8_886_078, items=407_082, seed=given.seed)
