"""Mutations of configurations and data files, as people and crashes make them; the same seed gives the same ones."""

from __future__ import annotations

import copy
import random
from typing import Any

VALUES: list[Any] = [
    None, "", " ", "none", True, False, 0, -1, 1, 3, 10**12, 10**30, 0.5, 1e308, float("inf"), float("-inf"),
    float("nan"), [], [[]], [1], ["a", "a"], {}, {"a": 1}, {1: 2}, "1", "1e3", "../x", "/etc/passwd", "a b", "a;b",
    "$(touch executed)", "`touch executed`", "'", '"', "a\nb", "é", "\u202e", "x" * 5000, "%s", "{run}", "{0}",
    "models.hllm.HLLM", "os.system", "baselines.sasrec", "cuda", "paper", "ml-100k",
]  # fmt: skip

TEXTS = [
    "\t", ":", "- ", "[", "{", "&a ", "*a", "!!python/object/apply:os.system ['touch executed']", "<<: ", "? ", "| ",
    "\x00", "\x07", "\ufeff", "2020-01-01", "1_000", "0x10", "~", "!!binary aGVsbG8=", "!!set {a, b}", "---\n", "#",
    "&a [*a]", "9" * 5000,
]  # fmt: skip

FIELDS = [
    "", " ", '"', '""', '"a', 'a"b', '"a,b"', '"a\nb"', ",", "\t", ",,,", "\n", "\r", "\r\n", "\x00", "\xff", "NaN",
    "null", "-1", "0", "1.0", "1.5", "1e9", "9" * 30, "-9223372036854775809", "2020-01-01", "é", "\u202e", "=1+1",
    "$(touch executed)", "../../x", "x" * 200_000, "u000", "i000", "user_id", "item_id:token",
]  # fmt: skip


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value within nested mappings and lists stands."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [] if not before else [before]
    for key, value in steps:
        found += paths(value, (*before, key))
    return found


def mutated_tree(tree: Any, choose: random.Random) -> Any:
    """The tree with one to three values replaced, removed, doubled, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(choose.choice((1, 1, 2, 3))):
        if not (places := paths(tree)):
            return tree
        *above, last = choose.choice(places)
        at = tree
        for step in above:
            at = at[step]
        kind = choose.choice(("replace", "replace", "replace", "remove", "rename", "swap"))
        if kind == "replace":
            at[last] = copy.deepcopy(choose.choice(VALUES))
        elif kind == "remove":
            del at[last]
        elif kind == "rename" and isinstance(at, dict):
            at[choose.choice((f"{last}s", 7, None, "execution", "model", "seeds"))] = at.pop(last)
        else:
            source = tree
            for step in choose.choice(places):
                source = source[step] if _has(source, step) else source
            at[last] = copy.deepcopy(source)
    return tree


def mutated_text(text: str, choose: random.Random, pieces: list[str]) -> bytes:
    """The text with some of it replaced, removed, doubled or cut off, and perhaps in another encoding."""
    for _ in range(choose.choice((1, 1, 2, 4))):
        start = choose.randrange(len(text) + 1)
        end = min(len(text), start + choose.choice((0, 0, 1, 2, 8, 60)))
        kind = choose.choice(("replace", "replace", "double", "cut", "swap"))
        if kind == "replace":
            text = text[:start] + choose.choice(pieces) + text[end:]
        elif kind == "double":
            text = text[:end] + text[start:]
        elif kind == "swap":
            text = text[:start] + text[start:end][::-1] + text[end:]
        elif choose.random() < 0.3:
            text = text[:start]
    if choose.random() < 0.05:
        return b""
    encoding = choose.choice(("utf-8",) * 12 + ("utf-16", "latin-1", "utf-8-sig"))
    return text.encode(encoding, errors="replace")


def _has(tree: Any, step: Any) -> bool:
    return step in tree if isinstance(tree, dict) else isinstance(tree, list) and step < len(tree)
