"""A Hugging Face hub on loopback: repositories of datasets in a folder, read and written, with faults to order.

``python hub_server.py FOLDER PORT LOG``: FOLDER/<owner>/<name>/<commit>/… are the commits of datasets, and the file
FOLDER/<owner>/<name>/main names the newest. FOLDER/faults.json, read at each request, is a list of
``{"path": part of a path, "status": code or "cut", "times": n}``; a cut answer ends half-way. LOG takes a line for
each request.

Whoever has a token is "me", who may write as "me" and as the organization "lab". Large files go to FOLDER/lfs, by
their SHA-256; a commit is a copy of the one before with its changes.
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

FOLDER, LOG = Path(sys.argv[1]), Path(sys.argv[3])
LOCK = Lock()
API = re.compile(
    r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(?:/(.*))?)?"
)
FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
LFS = re.compile(r"/lfs/([0-9a-f]{64})")
LARGE = (".tar", ".png", ".safetensors")
OWNERS = ("me", "lab")
LICENCES = ("apache-2.0", "cc-by-4.0", "other")


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    do_PUT = do_POST

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self._fault(path)
        with LOCK, LOG.open("a") as log:
            log.write(f"{self.command} {path} {self.headers.get('Range', '')} {fault or ''}\n")
        if isinstance(fault, int):
            self._send(fault, b"{}", {"Retry-After": "1"})
        elif match := FILE.fullmatch(path):
            self._file(match[1], match[2], match[3], cut=fault == "cut")
        elif self.command in ("POST", "PUT") and "paths-info" not in path:
            self._write(path, body)
        elif path == "/api/health":
            self._json({})
        elif path == "/api/whoami-v2":
            self._send(401, b"{}") if not self._known() else self._json(
                {"name": "me", "type": "user", "orgs": []}
            )
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
                "private": (FOLDER / repository / "private").exists(),
                "createdAt": "2026-01-02T03:04:05.000Z",
                "downloads": 0,
                "likes": 0,
            }
            self._json(
                {**facts, "tags": [], "siblings": _siblings(folder), "disabled": False, "gated": False}
            )
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

    def _known(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def _write(self, path: str, body: bytes) -> None:
        found = API.fullmatch(path) or BATCH.fullmatch(path)
        asked = {} if path.endswith("/commit/main") or LFS.fullmatch(path) else json.loads(body)
        owner = found[1].split("/")[0] if found else asked.get("organization") or "me"
        if LFS.fullmatch(path):  # its address is signed
            self._large_file(path.rpartition("/")[2], body)
        elif not self._known():
            self._send(401, b'{"error": "Invalid username or password."}')
        elif owner not in OWNERS:
            self._send(403, b'{"error": "You don\'t have the rights"}')
        elif path == "/api/repos/create":
            self._create(f"{owner}/{asked['name']}", asked.get("visibility") == "private")
        elif path == "/api/validate-yaml":
            self._validate(asked["content"])
        elif found is None or self._commit(found[1], None) is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif BATCH.fullmatch(path):
            self._json({"transfer": "basic", "objects": [self._batched(one) for one in asked["objects"]]})
        elif found[2] == "preupload":
            modes = {True: "lfs", False: "regular"}
            named = [(file["path"], modes[file["path"].endswith(LARGE)]) for file in asked["files"]]
            self._json(
                {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in named]}
            )
        else:
            self._commit_changes(found[1], [json.loads(line) for line in body.splitlines()])

    def _create(self, repository: str, private: bool) -> None:
        own = FOLDER / repository
        is_new = not own.exists()
        if is_new:
            (own / ("0" * 40)).mkdir(parents=True)
            (own / ("0" * 40) / ".gitattributes").write_text("*.tar filter=lfs\n")
            (own / "main").write_text("0" * 40)
            if private:
                (own / "private").touch()
        answer = {"url": f"{self._endpoint()}/datasets/{repository}"}
        self._send(200 if is_new else 409, json.dumps(answer).encode())

    def _validate(self, card: str) -> None:
        named = re.search(r"^license: (.*)$", card, re.MULTILINE)
        if named and named[1] in LICENCES:
            self._json({"errors": [], "warnings": []})
        else:
            answer = {"errors": [{"message": f'"license" must be one of {LICENCES}'}], "warnings": []}
            self._send(400, json.dumps(answer).encode())

    def _batched(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if (FOLDER / "lfs" / wanted["oid"]).exists():
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self._endpoint()}/lfs/{wanted['oid']}"}}}

    def _large_file(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            self._send(400, b"{}")
            return
        (FOLDER / "lfs").mkdir(exist_ok=True)
        (FOLDER / "lfs" / oid).write_bytes(content)
        self._send(200, b"")

    def _commit_changes(self, repository: str, lines: list[dict[str, Any]]) -> None:
        found = self._commit(repository, None)
        assert found is not None
        if lines[0]["value"].get("parentCommit", found[0]) != found[0]:
            self._send(412, b'{"error": "A commit has happened since"}')
            return
        commit = hashlib.sha1(json.dumps([found[0], lines]).encode()).hexdigest()
        folder = FOLDER / repository / commit
        shutil.copytree(found[1], folder)
        for line in lines[1:]:
            value = line["value"]
            target = folder / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                target.write_bytes((FOLDER / "lfs" / value["oid"]).read_bytes())
            else:
                assert line["key"] == "deletedFile"
                target.unlink()
        (FOLDER / repository / "main").write_text(commit)
        self._json(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self._endpoint()}/datasets/{repository}/commit/{commit}",
            }
        )

    def _endpoint(self) -> str:
        return f"http://127.0.0.1:{sys.argv[2]}"

    def _file(self, repository: str, revision: str, path: str, cut: bool) -> None:
        found = self._commit(repository, revision)
        if found is None or not (found[1] / path).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content = (found[1] / path).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": found[0],
            "Accept-Ranges": "bytes",
        }
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


def _siblings(folder: Path) -> list[dict[str, Any]]:
    """The files of a commit, as the hub lists them with their metadata."""
    siblings = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            name, size = file.relative_to(folder).as_posix(), len(content)
            large = {"lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 130}}
            small = {"blobId": hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest()}
            siblings.append(
                {"rfilename": name, "size": size, **(large if name.endswith(LARGE) else {}), **small}
            )
    return siblings


def _form(body: bytes) -> list[str]:
    from urllib.parse import parse_qs

    return parse_qs(body.decode()).get("paths", [])


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Hub).serve_forever()
