"""The lab's web server: the stand-in repository, and a cache in front of the distribution's archive.

Hosts fetch the distribution's packages through it (Acquire::http::Proxy for the archive's host, and nothing
else), so that a host which is reset ten times downloads them once. apt checks what it gets by signature and
hash as ever.

    python -m lab.server ADDRESS PORT WWW CACHE ARCHIVE…
"""

import http.client
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


FRESH_SECONDS = 600
"""How long the archive's word on what does change (InRelease) is given again: what is measured is no wait for the archive."""

WAITS = (1, 2, 4)
"""Seconds before the archive is asked again where it was not reached."""


class Handler(SimpleHTTPRequestHandler):
    """GET of a path: a file of the repository. GET of a whole URL: that file of the archive."""

    protocol_version = "HTTP/1.1"
    archives: tuple[str, ...] = ()
    cache = Path()
    locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
    answers: dict[tuple[str, str | None], tuple[float, int, dict[str, str], bytes]] = {}
    """(URL, what the client has) -> when, status, headers, body."""

    def do_GET(self):  # noqa: N802 (http.server's name)
        if not self.path.startswith("http://"):
            return super().do_GET()
        if not self.path.startswith(self.archives) or ".." in self.path.split("/"):
            return self.send_error(403, "Only the distribution's archive is fetched for hosts")
        try:
            self._fetch() if self._unchanging() else self._pass_on()
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            self.close_connection = True
            self.send_error(502, f"The archive did not answer: {error}")

    def _unchanging(self) -> bool:
        """Packages and files named by their hash never change under one address."""
        return self.path.endswith(".deb") or "/by-hash/" in self.path

    def _fetch(self):
        file = self.cache / urllib.parse.quote(self.path.removeprefix("http://"), safe="/+~:")
        with self.locks[self.path]:  # two hosts that want one file fetch it once
            if file.exists():
                self._start(200, {"Content-Length": str(file.stat().st_size)})
            else:
                return self._download(file)
        with file.open("rb") as content:
            shutil.copyfileobj(content, self.wfile)

    def _download(self, file: Path):
        """Give the client what arrives while it arrives; keep it if it was complete."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.partial")
        with self._open() as answer:
            length = answer.headers.get("Content-Length")
            if answer.status != 200 or length is None:
                return self._relay(answer)
            self._start(200, {"Content-Length": length})
            with partial.open("wb") as kept:
                while block := answer.read(1 << 18):
                    kept.write(block)
                    self.wfile.write(block)
        if partial.stat().st_size == int(length):
            partial.rename(file)

    def _pass_on(self):
        asked = (self.path, self.headers["If-Modified-Since"])
        with self.locks[self.path]:
            since, *given = self.answers.get(asked, (0.0,))
            if not given or time.monotonic() - since > FRESH_SECONDS:
                with self._open() as answer:
                    given = self._read(answer)
                if given[0] in (200, 304, 404):
                    self.answers[asked] = (time.monotonic(), *given)
        self._give(*given)

    def _relay(self, answer):
        self._give(*self._read(answer))

    def _read(self, answer) -> tuple[int, dict[str, str], bytes]:
        kept = {name: answer.headers[name] for name in ("Last-Modified", "ETag") if name in answer.headers}
        return answer.status, kept, answer.read()

    def _give(self, status: int, kept: dict[str, str], body: bytes):
        self._start(status, {**kept, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _open(self):
        asked = {name: self.headers[name] for name in ("If-Modified-Since", "User-Agent") if name in self.headers}
        for wait in (*WAITS, None):
            try:
                return urllib.request.urlopen(urllib.request.Request(self.path, headers=asked), timeout=60)
            except urllib.error.HTTPError as answer:  # 304 and 404 are answers as well
                return answer
            except (urllib.error.URLError, TimeoutError):
                if wait is None:
                    raise
                time.sleep(wait)  # a name that is not resolved on a busy machine is, a moment later

    def _start(self, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def main(address: str, port: str, www: str, cache: str, *archives: str) -> None:
    """Serve until killed."""
    os.makedirs(www, exist_ok=True)
    Handler.archives, Handler.cache = archives, Path(cache)

    def handler(*arguments):
        return Handler(*arguments, directory=www)

    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer((address, int(port)), handler).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
