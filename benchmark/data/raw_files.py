"""Raw files read once from start to end: plain or gzip, in blocks of whole lines, hashed on the way."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from benchmark.data.dataset import SourceFile
from benchmark.errors import UserError

BLOCK = 1 << 23  # bytes of text that are parsed at once
_GZIP = b"\x1f\x8b"


class RawFile:
    """One pass over a file. `source` is its name, size and SHA-256 as stored, once `blocks` has come to the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digest, self._bytes = hashlib.sha256(), 0

    @property
    def source(self) -> SourceFile:
        return SourceFile(self.path.name, self._bytes, self._digest.hexdigest())

    def blocks(self) -> Iterator[bytes]:
        """The text in blocks that end with a newline, except perhaps the last; gzip is unpacked."""
        parts: list[bytes] = []
        for new in self._unpacked():
            cut = new.rfind(b"\n") + 1
            if cut:
                yield b"".join([*parts, new[:cut]])
                parts = []
            if cut < len(new):
                parts.append(new[cut:])
        if parts:
            yield b"".join(parts)

    def _unpacked(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            packed = file.read(2) == _GZIP
            file.seek(0)
            stored: Any = _Hashed(file, self)
            if not packed:
                while block := stored.read(BLOCK):
                    yield block
                return
            try:
                with gzip.GzipFile(fileobj=stored, mode="rb") as unpacked:
                    while block := unpacked.read(BLOCK):
                        yield block
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(f"{self.path} is damaged or cut short ({error}); delete it and get it again") from error
            while stored.read(BLOCK):  # what stands behind the packed data is part of the file too
                pass

    def took(self, block: bytes) -> None:
        self._digest.update(block)
        self._bytes += len(block)


class _Hashed:
    """What gzip needs of a file, telling a RawFile of every byte that is read."""

    def __init__(self, file: IO[bytes], owner: RawFile) -> None:
        self._file, self._owner = file, owner

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._owner.took(block)
        return block


def first_block(path: Path) -> bytes:
    """The beginning of a file's text, in whole lines where it has any."""
    return next(RawFile(path).blocks(), b"")
