"""The lab's web server fetches each package once, and nothing but the archive's."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lab import server


@pytest.fixture
def archive():
    """An archive on loopback that counts what it is asked for."""
    asked = []

    class Archive(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            missing = self.path.endswith("missing.deb")
            self.send_response(404 if missing else 200)
            self.send_header("Content-Length", "0" if missing else "7")
            self.end_headers()
            self.wfile.write(b"" if missing else b"content")

        def log_message(self, *_):
            pass

    running = _start(ThreadingHTTPServer(("127.0.0.1", 0), Archive))
    yield f"http://127.0.0.1:{running.server_port}/debian/", asked
    running.shutdown()
    running.server_close()


@pytest.fixture
def get(archive, tmp_path, monkeypatch):
    """Ask the lab's server as apt would ask a proxy."""
    monkeypatch.setattr(server.Handler, "archives", (archive[0],))
    monkeypatch.setattr(server.Handler, "cache", tmp_path)
    monkeypatch.setattr(server.Handler, "answers", {})
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)
    running = _start(ThreadingHTTPServer(("127.0.0.1", 0), server.Handler))

    def get(url):
        connection = http.client.HTTPConnection("127.0.0.1", running.server_port, timeout=10)
        connection.request("GET", url)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body

    yield get
    running.shutdown()
    running.server_close()


def _start(what):
    threading.Thread(target=what.serve_forever, args=[0.01], daemon=True).start()
    return what


def test_a_package_is_fetched_once(archive, get):
    url, asked = archive
    for _ in range(3):
        assert get(url + "pool/a_1%2b2_all.deb") == (200, b"content")
    assert len(asked) == 1


def test_an_index_is_asked_for_again_after_a_while(archive, get, monkeypatch):
    url, asked = archive
    for fresh, times in ((600, 1), (600, 1), (0, 2)):
        monkeypatch.setattr(server, "FRESH_SECONDS", fresh)
        assert get(url + "dists/bookworm/InRelease") == (200, b"content")
        assert len(asked) == times


def test_what_the_archive_lacks_is_not_kept(archive, get):
    url, asked = archive
    for _ in range(2):
        assert get(url + "pool/missing.deb")[0] == 404
    assert len(asked) == 2


def test_nothing_but_the_archive_is_fetched(archive, get):
    assert get("http://127.0.0.1:1/else.deb")[0] == 403
    assert archive[1] == []


def test_no_path_leads_out_of_the_cache(archive, get, tmp_path):
    url, _ = archive
    assert get(url + "../../../../escaped.deb")[0] == 403
    assert not list(tmp_path.parent.glob("escaped.deb"))
