"""Downloads, from a server on this machine: only what has the published hash is kept."""

import contextlib
import dataclasses
import http.server
import logging
import os
import threading

import pytest

from pliant.data import DataError, load, where
from pliant.data.catalog import CATALOG
from tests.data.makers import digits

pytestmark = pytest.mark.faults


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` under /good/, and other things elsewhere."""

    def do_GET(self):
        self.server.asked.append(self.path)
        _, kind, name = self.path.split("/")
        content = self.server.files.get(name)
        if kind == "missing" or content is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if kind == "truncated":
            self.wfile.write(content[: len(content) // 2])
            return self.connection.close()
        if kind == "cut":  # the same, without saying how much it should have been
            content = content[: len(content) // 2] + b"\0" * (len(content) - len(content) // 2)
        self.wfile.write(b"?" * len(content) if kind == "wrong" else content)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.files, served.asked = {}, []
    thread = threading.Thread(target=served.serve_forever, args=(0.01,))
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """A function that publishes small digits on some mirrors of the server."""
    entry = digits(tmp_path / "published")
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}

    def publish(*kinds):
        mirrors = tuple(f"http://127.0.0.1:{server.server_port}/{kind}/" for kind in kinds)
        monkeypatch.setitem(CATALOG, "mnist", dataclasses.replace(entry, mirrors=mirrors))

    return publish


def test_what_is_not_here_is_downloaded_once(server, published, cache, tmp_path):
    published("good")
    assert where("mnist") is None
    first = load("mnist")
    assert len(server.asked) == 4
    assert load("mnist").sha256 == first.sha256
    assert len(server.asked) == 4
    assert where("mnist") == cache / "downloads" / "mnist"
    assert first.sha256 == load("mnist", _as_mnist(tmp_path), download=False).sha256


def _as_mnist(tmp_path):
    (tmp_path / "published").rename(tmp_path / "mnist")
    return tmp_path


def test_what_is_here_is_not_downloaded(server, published, tmp_path, monkeypatch):
    published("good")
    monkeypatch.setenv("PLIANT_DATA", str(_as_mnist(tmp_path)))
    assert len(load("mnist").train) == 6
    assert server.asked == []


@pytest.mark.parametrize("bad", ["missing", "truncated", "cut", "wrong"])
def test_a_mirror_that_fails_is_passed_over(server, published, bad):
    published(bad, "good")
    assert len(load("mnist").train) == 6
    assert [path.split("/")[1] for path in server.asked[:2]] == [bad, "good"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("missing", "missing/: HTTP 404"),
        ("truncated", "truncated/: (ChunkedEncodingError|ConnectionError|truncated or wrong)"),
        ("cut", "cut/: truncated or wrong, its hash is not the published one"),
        ("wrong", "wrong/: truncated or wrong, its hash is not the published one"),
    ],
)
def test_when_every_mirror_fails_each_is_said_and_nothing_is_kept(published, cache, bad, message):
    published(bad, "missing")
    with pytest.raises(DataError, match=rf"cannot download train-images-idx3-ubyte\.gz: .*{message}") as raised:
        load("mnist")
    assert f"put it into $PLIANT_DATA or {cache / 'downloads' / 'mnist'}" in str(raised.value)
    assert [path.name for path in (cache / "downloads" / "mnist").iterdir()] == ["train-images-idx3-ubyte.gz.lock"]


def test_without_a_server_the_message_says_so(published, server, monkeypatch):
    published("good")
    address = "http://127.0.0.1:9/"  # the discard port: nobody listens
    monkeypatch.setitem(CATALOG, "mnist", dataclasses.replace(CATALOG["mnist"], mirrors=(address,)))
    with pytest.raises(DataError, match=r"cannot download .*127\.0\.0\.1:9/: ConnectionError"):
        load("mnist")


def test_a_damaged_download_is_said_and_fetched_again(server, published, cache, caplog):
    published("good")
    before = load("mnist").sha256
    os.truncate(cache / "downloads" / "mnist" / "train-images-idx3-ubyte.gz", 20)
    with caplog.at_level(logging.WARNING):
        assert load("mnist").sha256 == before
    assert (
        "train-images-idx3-ubyte.gz is damaged (its hash is not the published one): it is fetched again" in caplog.text
    )
    assert len(server.asked) == 5


def test_a_half_written_download_is_not_taken_for_a_whole_one(server, published, cache):
    published("good")
    folder = cache / "downloads" / "mnist"
    folder.mkdir(parents=True)
    (folder / "tmpabc").write_bytes(server.files["train-images-idx3-ubyte.gz"][:30])  # as pooch names them
    assert where("mnist") is None
    assert len(load("mnist").train) == 6


def test_the_users_own_damaged_file_is_an_error_and_stays(server, published, tmp_path):
    published("good")
    folder = _as_mnist(tmp_path)
    os.truncate(folder / "mnist" / "train-images-idx3-ubyte.gz", 20)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is truncated or damaged"):
        load("mnist", folder)
    assert (folder / "mnist" / "train-images-idx3-ubyte.gz").stat().st_size == 20
    assert server.asked == []


def test_two_threads_download_a_file_once(server, published):
    published("good")
    hashes = []
    threads = [threading.Thread(target=lambda: hashes.append(load("mnist").sha256)) for _ in range(4)]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    assert len(set(hashes)) == 1
    assert len(hashes) == 4
    assert len(server.asked) == 4
