"""A Hugging Face hub on loopback: repositories of datasets in a folder, with faults to order.

``python hub_server.py FOLDER PORT LOG``: FOLDER/<owner>/<name>/<commit>/… are the commits of datasets, and the file
FOLDER/<owner>/<name>/main names the newest. FOLDER/faults.json, read at each request, is a list of
``{"path": part of a path, "status": code or "cut", "times": n}``; a cut answer ends half-way. LOG takes a line for
each request.
"""

import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[3])
LOCK = Lock()
API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self._fault(path)
        with LOCK, LOG.open("a") as log:
            log.write(f"{self.command} {path} {self.headers.get('Range', '')} {fault or ''}\n")
        if isinstance(fault, int):
            self._send(fault, b"{}", {"Retry-After": "1"})
        elif match := FILE.fullmatch(path):
            self._file(match[1], match[2], match[3], cut=fault == "cut")
        elif match := API.fullmatch(path):
            self._api(match[1], match[2], match[3], match[4] or "", body)
        else:
            self._send(404, b"{}")

    def _fault(self, path: str) -> Any:
        orders = FOLDER / "faults.json"
        with LOCK:
            faults = json.loads(orders.read_text()) if orders.exists() else []
            for fault in faults:
                if fault["path"] in path and fault["times"] > 0:
                    fault["times"] -= 1
                    orders.write_text(json.dumps(faults))
                    return fault["status"]
        return None

    def _commit(self, repository: str, revision: str | None) -> tuple[str, Path] | None:
        own = FOLDER / repository
        if not own.is_dir():
            return None
        commit = (own / "main").read_text().strip() if revision in (None, "main") else revision
        return (commit, own / commit) if (own / commit).is_dir() else None

    def _api(self, repository: str, asked: str | None, revision: str | None, path: str, body: bytes) -> None:
        found = self._commit(repository, revision)
        if found is None:
            self._send(404, b'{"error": "Revision Not Found"}', {"X-Error-Code": "RevisionNotFound"})
            return
        commit, folder = found
        if asked in (None, "revision"):
            facts = {
                "_id": "1",
                "id": repository,
                "sha": commit,
                "private": False,
                "downloads": 0,
                "likes": 0,
            }
            self._json({**facts, "tags": [], "siblings": [], "disabled": False, "gated": False})
        elif asked == "tree":
            inside = folder / path
            if inside.is_dir():
                recursive = "recursive=true" in self.path.lower()
                entries = sorted(inside.rglob("*") if recursive else inside.iterdir())
                self._json([_entry(folder, entry) for entry in entries])
            else:
                self._send(404, b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"})
        else:
            paths = json.loads(body)["paths"] if body.startswith(b"{") else _form(body)
            self._json([_entry(folder, folder / name) for name in paths if (folder / name).exists()])

    def _file(self, repository: str, revision: str, path: str, cut: bool) -> None:
        found = self._commit(repository, revision)
        if found is None or not (found[1] / path).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (found[1] / path).read_bytes()
        headers = {"ETag": f'"{len(content)}"', "X-Repo-Commit": found[0], "Accept-Ranges": "bytes"}
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            content, status = content[first : last + 1], 206
        self._send(status, content, headers, cut=cut)

    def _json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """The log has all that is needed."""


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
    return {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}


def _form(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(body.decode()).get("paths", [])


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
