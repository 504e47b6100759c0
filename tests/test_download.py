"""Downloads by HTTP, from a server on the loopback address that can break off."""

import functools
import hashlib
import http.server
import threading

import pytest

from genlib import download

CONTENT = bytes(range(256)) * 8192  # 2 MiB
CHECKSUM = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, breaking off after so many bytes while `breaks` lasts."""

    def __init__(self, state, *arguments):
        self.state = state
        super().__init__(*arguments)

    def do_GET(self):
        start = 0
        asked = self.headers.get("Range")
        self.state["ranges"].append(asked)
        if self.state.get("missing"):
            self.send_error(404)
            return
        if asked and self.state["knows ranges"]:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.send_error(416)
                return
        rest = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.state["breaks"] > 0:
            self.state["breaks"] -= 1
            rest = rest[:700_000]
        self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def served():
    state = {"ranges": [], "breaks": 0, "knows ranges": True}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, state))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/whole.tsv", state
    server.shutdown()
    server.server_close()


def test_a_file_comes_whole_and_is_not_fetched_twice(served, tmp_path):
    url, state = served
    path = download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert path.read_bytes() == CONTENT
    download.file(url, path, CHECKSUM, len(CONTENT))
    assert state["ranges"] == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tsv"]


def test_a_broken_download_goes_on_where_it_stopped(served, tmp_path):
    url, state = served
    state["breaks"] = 2
    assert download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT
    assert state["ranges"] == [None, "bytes=700000-", "bytes=1400000-"]


def test_what_an_earlier_call_left_is_used(served, tmp_path):
    url, state = served
    (tmp_path / "a.tsv.part").write_bytes(CONTENT[:1000])
    assert download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT
    assert state["ranges"] == ["bytes=1000-"]
    (tmp_path / "b.tsv.part").write_bytes(CONTENT)
    assert download.file(url, tmp_path / "b.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_again(served, tmp_path):
    url, state = served
    state |= {"knows ranges": False, "breaks": 1}
    assert download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT)).read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_the_file_removed(served, tmp_path):
    url, _ = served
    with pytest.raises(ValueError, match="does not have the checksum sha256:00"):
        download.file(url, tmp_path / "a.tsv", "sha256:00", len(CONTENT))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_keeps_breaking_is_said_and_what_came_is_kept(served, tmp_path, monkeypatch):
    url, state = served
    state["breaks"] = 99
    monkeypatch.setattr(download, "TRIES", 2)
    with pytest.raises(ConnectionError, match="put it here as"):
        download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert (tmp_path / "a.tsv.part").stat().st_size == 1_400_000


def test_a_file_that_is_not_there_is_not_asked_for_again(served, tmp_path):
    url, state = served
    state["missing"] = True
    with pytest.raises(ConnectionError, match="404"):
        download.file(url, tmp_path / "a.tsv", CHECKSUM, len(CONTENT))
    assert len(state["ranges"]) == 1


def test_a_checksum_must_say_its_kind(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(ValueError, match="must begin with"):
        download.file("http://127.0.0.1:9/a", tmp_path / "a", "abc", 1)
