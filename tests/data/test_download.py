"""Fetching raw files from a server that misbehaves, from mirrors and by name; every failure is one sentence."""

import hashlib
import io
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmark.data import download
from benchmark.data.download import Patience, fetch
from benchmark.data.sources import DatasetDefinition
from benchmark.errors import UserError

CONTENT = b"".join(b"%d,line\n" % n for n in range(40_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(first=0.0, sleep=lambda seconds: None)


class Server:
    """Answers with a list of behaviours, one a request, the last one for ever; keeps the requests' Range headers."""

    def __init__(self):
        self.behaviours, self.ranges, self.content, self.pause = ["whole"], [], CONTENT, 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/file.csv"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def answer(self, request):
        behaviour = self.behaviours.pop(0) if len(self.behaviours) > 1 else self.behaviours[0]
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if isinstance(behaviour, int):
            request.send_response(behaviour)
            request.send_header("Retry-After", "7")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and behaviour != "ignores ranges" else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Type", "text/html" if behaviour == "page" else "text/csv")
        request.send_header("ETag", '"one"')
        length = {"says less": len(body) // 2, "says more": len(body) + 99}.get(behaviour, len(body))
        request.send_header("Content-Length", str(length))
        request.end_headers()
        if behaviour == "corrupted":
            body = bytes([body[0] ^ 1]) + body[1:]
        cut = {"cuts": len(body) // 3, "cuts at once": 0}.get(behaviour, len(body))
        try:
            if behaviour == "slow":
                for place in range(0, len(body), 2_000):
                    request.wfile.write(body[place : place + 2_000])
                    time.sleep(0.002)
            else:
                request.wfile.write(body[:cut])
        except OSError:
            pass  # the client went away
        request.close_connection = True


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


def made(folder, url, accept=None, **known):
    sources = {"files": {"file.csv": {"url": url, **known}}, "accept": accept}
    return DatasetDefinition(
        name="made", reader="csv", folder=folder, interactions="file.csv", items="file.csv", licence="made for a test",
        terms="https://example.org/terms", sources=sources,
    )  # fmt: skip


def refused(definition, *words, **options):
    with pytest.raises(UserError) as caught:
        fetch(definition, patience=QUICK, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert not (definition.folder / "file.csv").exists()
    return message


@pytest.mark.parametrize(
    "behaviours",
    [
        ["whole"],
        ["cuts", "cuts", "cuts", "cuts", "cuts", "cuts", "whole"],
        ["says less", "whole"],
        ["says more", "says more", "whole"],
        [429, 503, "whole"],
        ["cuts", 500, "ignores ranges"],
        ["cuts at once", "whole"],
    ],
    ids=str,
)
def test_a_server_that_misbehaves_and_mends_gives_the_file(tmp_path, server, behaviours):
    server.behaviours = list(behaviours)
    files = fetch(made(tmp_path, server.url, bytes=len(CONTENT), sha256=SHA256), patience=QUICK)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    assert [(file.bytes, file.sha256) for file in files] == [(len(CONTENT), SHA256)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.csv"]
    if behaviours[0] == "cuts" and behaviours[1] == "cuts":
        starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for asked in server.ranges[1:]]
        assert starts == sorted(starts)  # every request goes on where the one before stopped
        assert len(set(starts)) > 2
        assert 0 < starts[0] <= len(CONTENT) // 3


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (404, ["404", "yourself", "--mirror"]),
        (403, ["403"]),
        (429, ["429", "run again later"]),
        ("cuts at once", ["run again later"]),
        ("page", ["web page"]),
        ("corrupted", ["is not the file that is known", "deleted"]),
        ("says less", ["run again later"]),
    ],
)
def test_what_does_not_mend_is_one_sentence_and_no_file(tmp_path, server, behaviour, words):
    server.behaviours = [behaviour]
    if behaviour == "says less":
        server.content = CONTENT[:1000]  # as much as it says, and less than is known
    refused(made(tmp_path, server.url, bytes=len(CONTENT), sha256=SHA256), server.url, *words)


def test_a_file_that_has_changed_is_told(tmp_path, server):
    server.content = CONTENT + b"1,more\n"
    refused(made(tmp_path, server.url, bytes=len(CONTENT), sha256=SHA256), "has changed")


def test_waits_double_and_follow_the_server(tmp_path, server):
    server.behaviours = [503, "cuts at once", "cuts at once", "whole"]
    waits = []
    fetch(made(tmp_path, server.url), patience=Patience(first=2.0, sleep=waits.append))
    assert waits[0] == 7.0  # Retry-After
    assert waits[1:] == [8.0, 16.0]


def test_without_a_network_the_sentence_says_which_file_to_put_where(tmp_path):
    url = "http://127.0.0.1:9/file.csv"  # nothing listens there
    refused(made(tmp_path, url), url, f"put {url} there as {tmp_path / 'file.csv'} yourself", "--mirror")


def test_terms_are_accepted_before_anything_is_fetched(tmp_path, server):
    definition = made(tmp_path, server.url, accept="strict")
    refused(definition, "made for a test", "https://example.org/terms", "--accept-terms strict")
    refused(definition, "--accept-terms strict", accepted=["other"])
    assert server.ranges == []
    fetch(definition, ["strict"], QUICK)
    fetch(definition, [], QUICK)  # what is there was fetched already
    assert len(server.ranges) == 1


def test_files_that_are_there_or_in_a_mirror_are_checked_and_not_fetched(tmp_path, server):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "file.csv").write_bytes(CONTENT)
    definition = made(tmp_path / "own", server.url, accept="strict", sha256=SHA256).with_mirror(mirror)
    fetch(definition, [], QUICK)
    assert server.ranges == []
    assert definition.files() == (mirror / "file.csv", mirror / "file.csv")
    (mirror / "file.csv").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=rf"{mirror / 'file.csv'}: its SHA-256 is .* and {SHA256} was expected"):
        fetch(definition, [], QUICK)
    (mirror / "file.csv").write_text("<!DOCTYPE html><html>Sign in</html>")
    with pytest.raises(UserError, match="is a web page and no data"):
        fetch(definition, [], QUICK)


def test_a_file_within_an_archive(tmp_path, server):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("inner/data.csv", CONTENT)
    server.content = packed.getvalue()
    url = server.url.replace("file.csv", "all.zip")
    definition = made(tmp_path, url, path="inner/data.csv", bytes=len(server.content))
    fetch(definition, [], QUICK)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    (tmp_path / "file.csv").unlink()
    (tmp_path / "all.zip").write_bytes(server.content[:100])
    refused(definition, "all.zip is damaged")


def test_killed_in_the_middle_it_goes_on_at_the_next_call(tmp_path, server):
    server.behaviours = ["slow", "whole"]
    code = (
        "import sys, pathlib\nfrom benchmark.data.download import fetch\n"
        "from benchmark.data.sources import DatasetDefinition\n"
        "fetch(DatasetDefinition.model_validate_json(sys.argv[1]))\n"
    )
    definition = made(tmp_path, server.url, bytes=len(CONTENT), sha256=SHA256)
    process = subprocess.Popen(
        [sys.executable, "-c", code, definition.model_dump_json()], cwd=Path(__file__).parents[2]
    )
    part = tmp_path / ".file.csv.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < part.stat().st_size < len(CONTENT)
    assert not (tmp_path / "file.csv").exists()
    fetch(definition, [], QUICK)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    assert server.ranges[1] is not None


def test_google_drive_files_are_found_by_name_in_their_folder(tmp_path, monkeypatch):
    import gdown

    class Listed:
        def __init__(self, path):
            self.id, self.path, self.local_path = f"id of {path}", path, path

    asked = []

    def fetched(*, id, output, quiet, resume):
        asked.append((id, resume))
        if len(asked) == 1:
            raise ConnectionError("cut")
        Path(output).write_bytes(CONTENT)
        return output

    monkeypatch.setattr(gdown, "download_folder", lambda **options: [Listed("Pixel1M.csv"), Listed("file.csv")])
    monkeypatch.setattr(gdown, "download", fetched)
    definition = made(tmp_path, None, drive_folder="abc")
    fetch(definition, [], QUICK)
    assert (tmp_path / "file.csv").read_bytes() == CONTENT
    assert asked == [("id of file.csv", True)] * 2
    monkeypatch.setattr(gdown, "download_folder", lambda **options: [Listed("Pixel1M.csv")])
    (tmp_path / "file.csv").unlink()
    refused(definition, "https://drive.google.com/drive/folders/abc has no file file.csv")


def test_a_hub_repository_is_asked_for_the_file_at_its_revision(tmp_path, monkeypatch):
    import huggingface_hub

    def fetched(**asked):
        assert (asked["repo_id"], asked["filename"], asked["repo_type"]) == ("owner/data", "a/b.csv", "dataset")
        asked["local_dir"].mkdir()
        path = asked["local_dir"] / "b.csv"
        path.write_bytes(CONTENT)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetched)
    definition = made(tmp_path, None, repository="owner/data", path="a/b.csv", sha256=SHA256)
    fetch(definition, [], QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["file.csv"]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", partial(fail, OSError("offline")))
    (tmp_path / "file.csv").unlink()
    refused(definition, "https://huggingface.co/datasets/owner/data/blob/main/a/b.csv could not be fetched", "offline")


def fail(error, **options):
    raise error


def test_a_full_disk_is_told_and_keeps_what_came(tmp_path, server, monkeypatch):
    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(28, "No space left on device")

    opened = Path.open

    def limited(path, mode="r", *arguments, **options):
        return Full() if path.name == ".file.csv.part" and "b" in mode else opened(path, mode, *arguments, **options)

    monkeypatch.setattr(download.Path, "open", limited)
    refused(made(tmp_path, server.url), "could not be written: No space left on device")
