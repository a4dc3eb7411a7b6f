"""Records written as Python dictionaries, one a line, read without evaluating anything.

Nearly all lines of Amazon's metadata are flat: text keys; texts, numbers, and lists and dictionaries of these. For such
a line a regular expression steps from pair to pair and only the wanted values are decoded; it accepts no line
that `ast.literal_eval` would read otherwise, and every other line goes to `ast.literal_eval`, which builds literals and
calls nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

# Repetitions are possessive, so that no line can make the matching slow.
_TEXT = (
    r"(?:'(?:[^'\\\n\r\x00]++|\\(?:['\"\\ntr]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}))*+'"
    r"|\"(?:[^\"\\\n\r\x00]++|\\(?:['\"\\ntr]|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}))*+\")"
)
_SCALAR = (
    rf"(?:{_TEXT}|-?(?:0|[1-9][0-9]{{0,17}}+)(?:\.[0-9]++)?+(?:e[+-]?[0-9]{{1,3}}+)?+(?![0-9A-Za-z_.])|None|True|False)"
)
_LIST = rf"\[(?:{_SCALAR}(?:, {_SCALAR})*+)?+\]"
_VALUE = (
    rf"(?:{_SCALAR}|{_LIST}|\[{_LIST}(?:, {_LIST})*+\]"
    rf"|\{{(?:{_TEXT}: (?:{_SCALAR}|{_LIST})(?:, {_TEXT}: (?:{_SCALAR}|{_LIST}))*+)?+\}})"
)
_PAIR = re.compile(rf"({_TEXT}): ({_VALUE})(, |\}}\Z)")
_PLAIN_TEXT = re.compile(r"['\"][^\\]*['\"]")


def literal_fields(keys: tuple[str, ...]) -> Callable[[bytes], Mapping[str, Any]]:
    """A function that reads one line and returns at least its values of these keys; ValueError says what is wrong."""
    wanted = frozenset(keys)
    match = _PAIR.match

    def parse(line: bytes) -> Mapping[str, Any]:
        text = line.decode().strip(" \t\r")  # UnicodeDecodeError is a ValueError
        if text[:1] != "{":
            return _whole(text)
        found: dict[str, Any] = {}
        place = 1
        while pair := match(text, place):
            key = pair[1][1:-1]
            if "\\" in key:
                return _whole(text)
            if key in wanted:
                found[key] = _decoded(pair[2])
            place = pair.end()
            if pair[3] != ", ":
                return found
        return _whole(text)

    return parse


def _decoded(token: str) -> Any:
    return token[1:-1] if _PLAIN_TEXT.fullmatch(token) else ast.literal_eval(token)


def _whole(text: str) -> Mapping[str, Any]:
    try:
        record = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"it is no Python literal ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a record, found {type(record).__name__}")
    return record
