"""A hub on this machine, for the real client: the part of its protocol that models need.

It keeps repositories in memory: creation, preupload, LFS, commits, the list of files, downloads.
The client's own storage service, Xet, is not part of it.
"""

import base64
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
# The answer to a request that gets none.
NEVER = 0


@dataclass
class Repository:
    """The files of the newest commit, the messages of all, and who sees them."""

    visibility: str = "public"
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(self.messages).encode()).hexdigest()


class LocalHub(ThreadingHTTPServer):
    """The server. `fault(method, path)` may give another status than 200; NEVER: no answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        # For the processes that use it.
        self.environment: dict[str, str] = {}
        # Method, path and token of each request.
        self.received: list[tuple[str, str, str | None]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        # How weights are sent: "lfs" or "regular".
        self.upload_mode = "lfs"
        # What becomes of a large file on its way to the client.
        self.damage: Callable[[bytes], bytes] = lambda content: content
        self.closed = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def put(self, name: str, folder: Path) -> Repository:
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.repositories[name] = Repository(files=files, messages=["first"])
        return self.repositories[name]

    def mode_of(self, path: str) -> str:
        return self.upload_mode if path.endswith(".safetensors") else "regular"

    def requests(self, part: str) -> int:
        return sum(part in path for _, path, _ in self.received)


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.received.append((self.command, path, self.headers.get("Authorization")))
        status = self.server.fault(self.command, path)
        if status == NEVER:
            self.server.closed.wait()
        elif status is not None:
            self.reply(status, {"error": "as the test wants it"})
        else:
            for pattern, answer in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, body, **match.groupdict())
                    return
            self.reply(404, {"error": "not here"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.address}/{name}"
        if name in self.server.repositories:
            self.reply(409, {"error": "You already created this model repo", "url": url})
            return
        # Clients before version 1 send "private".
        private = asked.get("visibility") == "private" or asked.get("private")
        self.server.repositories[name] = Repository("private" if private else "public")
        self.reply(200, {"url": url, "name": name, "id": "1"})

    def validate(self, body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        if self.known(name):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": self.server.mode_of(file["path"]),
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})

    def batch(self, body: bytes, name: str) -> None:
        objects = json.loads(body)["objects"]
        for blob in objects:
            if blob["oid"] not in self.server.large:
                href = f"{self.server.address}/large/{blob['oid']}"
                blob["actions"] = {"upload": {"href": href, "header": {}}}
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self.reply(200, {})

    def commit(self, body: bytes, name: str) -> None:
        if repository := self.known(name):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    repository.messages.append(value["summary"])
                elif line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                else:
                    assert line["key"] == "lfsFile"
                    repository.files[value["path"]] = self.server.large[value["oid"]]
            url = f"{self.server.address}/{name}/commit/{repository.commit}"
            self.reply(
                200,
                {
                    "commitUrl": url,
                    "commitOid": repository.commit,
                    "hookOutput": "",
                    "success": True,
                },
            )

    def about(self, body: bytes, name: str, revision: str = "main") -> None:
        if repository := self.known(name, revision):
            self.reply(200, {"id": name, "sha": repository.commit, "siblings": [], "tags": []})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        if repository := self.known(name, revision):
            entries = []
            for path, content in repository.files.items():
                entry = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                if path.endswith(".safetensors"):
                    oid = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self.reply(200, entries)

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> None:
        if repository := self.known(name, revision):
            content = repository.files.get(file)
            if content is None:
                self.reply(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
                return
            large = file.endswith(".safetensors")
            etag = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            sent = self.server.damage(content) if large else content
            headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag}"'}
            self.send(200, content if self.command == "HEAD" else sent, headers)

    def known(self, name: str, revision: str = "main") -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            # The hub answers so to hide private models.
            self.reply(401, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", repository.commit):
            self.reply(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
            repository = None
        return repository

    def reply(self, code: int, answer: object, headers: dict | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send(code, content, {"Content-Type": "application/json"} | (headers or {}))

    def send(self, code: int, content: bytes, headers: dict) -> None:
        self.send_response(code)
        # As the real one: another with each answer.
        self.send_header("X-Request-Id", uuid.uuid4().hex)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


ROUTES = (
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"POST /api/models/{NAME}/preupload/main", _Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /large/(?P<oid>\w+)", _Handler.store),
    (f"POST /api/models/{NAME}/commit/main", _Handler.commit),
    (f"GET /api/models/{NAME}", _Handler.about),
    (rf"GET /api/models/{NAME}/revision/(?P<revision>[\w.]+)", _Handler.about),
    (rf"GET /api/models/{NAME}/tree/(?P<revision>\w+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(?P<revision>\w+)/(?P<file>.+)", _Handler.resolve),
)
