"""Raw files fetched from where they are published: resumed, repeated, checked, and never whole before they are."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pooch
import requests

from benchmark.data.dataset import SourceFile
from benchmark.data.sources import DatasetDefinition, RemoteFile
from benchmark.errors import UserError
from benchmark.files import write_atomically

_ATTEMPTS = 5  # without a byte of progress between them
_LONGEST_WAIT = 120.0  # seconds, also where a server asks for more
_TIMEOUT = (20, 60)  # seconds to connect, and between two packets
_CHUNK = 1 << 16  # what a broken connection may lose of what has come
_AGAIN = {408, 425, 429, 500, 502, 503, 504}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long to wait before the n-th repetition of a request. first: seconds, doubled every time."""

    first: float = 1.0
    sleep: Callable[[float], object] = time.sleep

    def wait(self, number: int, asked: float | None, reason: str) -> None:
        seconds = min(_LONGEST_WAIT, max(asked or 0.0, self.first * 2**number))
        log.warning("%s; trying again in %.0f s", reason, seconds)
        self.sleep(seconds)


class _TryAgainError(Exception):
    """A failure that may pass. after: the seconds that the server asks for."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def fetch(
    definition: DatasetDefinition, accepted: Collection[str] = (), patience: Patience = Patience()
) -> list[SourceFile]:
    """Make sure that all raw files of a data set are there, fetching those that are neither in its folder nor in the
    mirror, and check size and checksum of all of them. accepted: names of terms that the user agrees to."""
    sources = definition.sources
    if sources is None:
        raise UserError(f"data set {definition.name} has no `sources` in its definition: put its files there yourself")
    missing = [name for name in sources.files if definition.find(name) is None]
    if missing:
        log.info("licence: %s%s", definition.licence, f" ({definition.terms})" if definition.terms else "")
    if missing and sources.accept is not None and sources.accept not in accepted:
        raise UserError(
            f"data set {definition.name}: read its terms ({definition.terms}): {definition.licence}; if you agree, "
            f"fetch it with --accept-terms {sources.accept} (in the workflow --config accept_terms={sources.accept})"
        )
    for name in missing:
        _fetch(definition, name, sources.files[name], patience)
    return [_checked(definition, name, remote) for name, remote in sources.files.items()]


def _fetch(definition: DatasetDefinition, name: str, remote: RemoteFile, patience: Patience) -> None:
    target = definition.folder.expanduser() / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if remote.repository is not None:
            _from_hub(remote, target, patience)
        elif remote.drive_folder is not None:
            _from_drive(remote, target, patience)
        elif remote.path is None:
            _from_web(remote, target, patience)
        else:
            archive = target.with_name(Path(str(remote.url)).name)
            if not archive.is_file():
                _from_web(remote, archive, patience)
            _unpack(archive, remote.path, target)
    except OSError as error:
        raise UserError(f"{target} could not be written: {error.strerror or error}; what is there is kept") from error


def _by_hand(remote: RemoteFile, target: Path) -> str:
    return f"put {remote.place} there as {target} yourself, or name a folder that has it with --mirror"


def _from_web(remote: RemoteFile, target: Path, patience: Patience) -> None:
    known = f"sha256:{remote.sha256}" if remote.sha256 else f"md5:{remote.md5}" if remote.md5 else None
    download = ResumingDownload(target, remote, patience)
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(str(remote.url), known, fname=target.name, path=target.parent, downloader=download)
    except ValueError as error:  # pooch's, of another checksum
        raise UserError(
            f"{remote.url}: what was fetched is not the file that is known ({' '.join(str(error).split())}); it was "
            f"deleted: run again, or {_by_hand(remote, target)}"
        ) from error


class ResumingDownload:
    """A downloader for pooch that goes on where an earlier one stopped, in this process or in one before."""

    def __init__(self, target: Path, remote: RemoteFile, patience: Patience) -> None:
        self._target, self._remote, self._patience = target, remote, patience
        self._part = target.with_name(f".{target.name}.part")
        self._tag = target.with_name(f".{target.name}.etag")

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        failures, had = 0, self._have()
        while True:
            try:
                self._go_on(url)
                break
            except _TryAgainError as problem:
                have = self._have()
                failures, had = (0 if have > had else failures + 1), have
                if failures == _ATTEMPTS:
                    raise UserError(
                        f"{url} could not be fetched ({problem}); run again later to go on, or "
                        f"{_by_hand(self._remote, self._target)}"
                    ) from problem
                self._patience.wait(failures, problem.after, f"{url}: {problem}")
        self._tag.unlink(missing_ok=True)
        shutil.move(self._part, output_file)

    def _have(self) -> int:
        return self._part.stat().st_size if self._part.is_file() else 0

    def _go_on(self, url: str) -> None:
        have, size = self._have(), self._remote.bytes
        if have and have == size:
            return
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self._tag.is_file():
                headers["If-Range"] = self._tag.read_text(encoding="utf-8")
        try:
            with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                self._check(url, response, have)
                self._store(response, have if response.status_code == 206 else 0)
        except requests.RequestException as error:
            raise _TryAgainError(_said(error)) from error
        have = self._have()
        if size is not None and have < size:
            raise _TryAgainError(f"{have} of {size} bytes came")
        if size is not None and have > size:
            self._part.unlink()
            raise UserError(
                f"{url} sends {have} bytes or more, and the file that is known has {size}: it has changed, so "
                f"{_by_hand(self._remote, self._target)}"
            )

    def _check(self, url: str, response: requests.Response, have: int) -> None:
        if response.status_code in _AGAIN:
            after = response.headers.get("Retry-After", "")
            raise _TryAgainError(f"the server answers {response.status_code} {response.reason}",
                            float(after) if after.isdigit() else None)  # fmt: skip
        range_start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if response.status_code == 416 or (response.status_code == 206 and range_start != str(have)):
            self._part.unlink(missing_ok=True)  # what is there is no beginning of the file
            raise _TryAgainError("the server does not go on where the download stopped, so it begins anew")
        if response.status_code not in (200, 206):
            raise UserError(
                f"{url}: the server answers {response.status_code} {response.reason}; if the file has moved, mend "
                f"`sources`, or {_by_hand(self._remote, self._target)}"
            )
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise UserError(
                f"{url} sends a web page and no data (it may ask for something); open it in a browser and "
                f"{_by_hand(self._remote, self._target)}"
            )

    def _store(self, response: requests.Response, start: int) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        tag = response.headers.get("ETag", "")
        if tag and not tag.startswith("W/"):
            self._tag.write_text(tag, encoding="utf-8")
        length = response.headers.get("Content-Length", "")
        total = self._remote.bytes or (start + int(length) if length.isdigit() else None)
        columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        quiet = not sys.stderr.isatty()
        log.info("fetching %s%s", response.url, f", from byte {start}" if start else "")
        with Progress(*columns, transient=True, disable=quiet) as bar, self._part.open("ab" if start else "wb") as file:
            task = bar.add_task(self._target.name, total=total, completed=start)
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))


def _said(error: Exception) -> str:
    """An exception in one line without the addresses of objects."""
    text = " ".join(str(error).split())
    if "NameResolution" in text or "Name or service" in text:
        return "its address cannot be found: is there a network?"
    return f"{type(error).__name__}: {text.split(' object at 0x')[0][:200]}"


def _from_hub(remote: RemoteFile, target: Path, patience: Patience) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    store = target.with_name(f".{target.name}.hub")  # the library goes on in it after a stop
    get = partial(hf_hub_download, repo_id=remote.repository, filename=remote.path, repo_type="dataset",
                  revision=remote.revision, local_dir=store)  # fmt: skip
    lasting = (EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError)
    Path(_repeated(get, lasting, remote, target, patience)).replace(target)
    shutil.rmtree(store)


def _from_drive(remote: RemoteFile, target: Path, patience: Patience) -> None:
    import gdown
    from gdown.exceptions import DownloadError

    quiet = not sys.stderr.isatty()
    listing = partial(gdown.download_folder, id=remote.drive_folder, skip_download=True, quiet=True)
    files = _repeated(listing, (), remote, target, patience) or []
    found = [file for file in files if Path(file.path).name == target.name]
    if not found:
        raise UserError(f"{remote.place} has no file {target.name}; {_by_hand(remote, target)}")
    store = target.with_name(f".{target.name}.drive")
    get = partial(gdown.download, id=found[0].id, output=str(store), quiet=quiet, resume=True)
    fetched = _repeated(get, (DownloadError,), remote, target, patience)
    if fetched is None:
        raise UserError(f"{remote.place}: Google Drive does not hand out {target.name}; {_by_hand(remote, target)}")
    Path(fetched).replace(target)


def _repeated(
    get: Callable[[], Any], lasting: tuple[type[Exception], ...], remote: RemoteFile, target: Path, patience: Patience
) -> Any:
    """What get returns, tried again after failures that may pass."""
    for number in range(_ATTEMPTS):
        try:
            return get()
        except UserError:
            raise
        except Exception as error:  # these libraries raise their own, requests' and httpx' exceptions
            if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
                raise  # a file that cannot be written
            if isinstance(error, lasting) or number == _ATTEMPTS - 1:
                raise UserError(
                    f"{remote.place} could not be fetched ({_said(error)}); run again later to go on, or "
                    f"{_by_hand(remote, target)}"
                ) from error
            patience.wait(number, None, f"{remote.place}: {_said(error)}")
    raise AssertionError("not reached")


def _unpack(archive: Path, member: str, target: Path) -> None:
    def write(path: Path) -> None:
        with zipfile.ZipFile(archive) as packed, packed.open(member) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)

    try:
        write_atomically(target, write)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{archive} is damaged or lacks {member} ({error}); delete it and run again") from error


def _checked(definition: DatasetDefinition, name: str, remote: RemoteFile) -> SourceFile:
    """Size and SHA-256 of a raw file, which must be those that are known."""
    path = definition.file(name)
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a web page and no data; delete it and get {remote.place} again")
    size, digest = path.stat().st_size, pooch.file_hash(str(path), alg="sha256")
    known: list[tuple[str, object, object]] = []
    if remote.path is None or remote.repository is not None:  # of the file itself, and not of the archive it was in
        known = [("size", remote.bytes, size), ("SHA-256", remote.sha256, digest)]
        if remote.md5 is not None and remote.sha256 is None:
            known.append(("MD5", remote.md5, pooch.file_hash(str(path), alg="md5")))
    for what, expected, found in known:
        if expected is not None and expected != found:
            raise UserError(
                f"{path}: its {what} is {found} and {expected} was expected; delete it and get {remote.place} again"
            )
    return SourceFile(name, size, digest)
