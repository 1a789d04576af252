"""A small server that speaks as much of the Hugging Face Hub as plugins need.

Names are made, files are committed (small ones in the commit, ``.safetensors`` through Git LFS) and
fetched at a branch or a commit. The requests are those of huggingface_hub without hf_xet.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

import huggingface_hub
import pytest
import yaml

WRITE, READ = "hf_write", "hf_read"
"""Tokens of the account ``user``."""

LICENSES = {"mit", "apache-2.0", "cc-by-nc-4.0", "other"}


@dataclass
class Repository:
    """One name on the Hub."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Adds files to a branch; the commit's hash."""
        whole = {**self.commits[self.branches[branch]], **files}
        named = repr((len(self.commits), branch, sorted(whole.items()))).encode()
        sha = hashlib.sha1(named).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclass
class FakeHub:
    """What the server has, and what it was asked.

    Attributes:
        repositories: By name.
        large: Contents that were sent through Git LFS, by SHA-256.
        asked: Method and path of every request.
        pull_requests: How many were asked for.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    pull_requests: int = 0

    def fetched(self) -> set[str]:
        """Names of the files whose contents were fetched."""
        return {
            path.rpartition("/")[2]
            for method, path in self.asked
            if method == "GET" and "/resolve/" in path
        }


class Refused(Exception):
    """An answer of the Hub that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub for models."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request()

    def do_HEAD(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        self.handle_request()

    def do_PUT(self) -> None:
        self.handle_request()

    def handle_request(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.asked.append((self.command, path))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            for pattern, answer in self.ROUTES.items():
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, body, *found.groups())
                    return
            raise Refused(404, "RepoNotFound")
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.answer({"error": error.message}, error.status, headers)

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def repository(self, name: str) -> Repository:
        found = self.hub.repositories.get(name)
        if found is None or (found.private and self.token not in (WRITE, READ)):
            # The Hub does not tell a private name from none.
            raise Refused(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return found

    def may_write(self, name: str) -> None:
        if not self.token:
            raise Refused(401, "", "Invalid username or password.")
        if self.token != WRITE or not name.startswith("user/"):
            raise Refused(403, "", "You don't have the rights to create a model there")

    def files_at(self, name: str, revision: str) -> dict[str, bytes]:
        files = self.repository(name).files(revision)
        if files is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return files

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        self.may_write(name)
        known = name in self.hub.repositories
        if not known:
            private = asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private=private)
        self.answer({"url": self.url(name), "name": name}, 409 if known else 200)

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository = self.repository(name)
        self.files_at(name, revision or "main")
        sha = repository.branches.get(revision or "main", revision)
        self.answer({"id": name, "sha": sha, "siblings": [], "tags": []})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        files = self.files_at(name, revision)
        self.answer([self.about(path, content) for path, content in files.items()])

    def about(self, path: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path.endswith(".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 9}
        return entry

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if self.repository(name).gated and not self.token:
            raise Refused(401, "GatedRepo", "Access to it is restricted")
        files = self.files_at(name, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        entry = self.about(path, files[path])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self.answer(files[path], 200, {"X-Repo-Commit": revision, "ETag": f'"{etag}"'})

    def validate(self, body: bytes) -> None:
        front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
        flaws = []
        if front.get("license", "mit") not in LICENSES:
            flaws.append({"message": f'"license" must be one of {sorted(LICENSES)}'})
        self.answer({"errors": flaws, "warnings": []}, 400 if flaws else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self.may_write(name)
        self.files_at(name, revision)
        asked = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in asked}
        files = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False}
            for path, mode in modes.items()
        ]
        self.answer({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self.may_write(name)
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"href": self.url(f"lfs/{item['oid']}"), "header": {}}
            objects.append({**item, "actions": {"upload": upload}})
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.answer({})

    def commit(self, body: bytes, name: str, branch: str) -> None:
        self.may_write(name)
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        message = lines[0]["value"]["summary"]
        answer = {}
        if "create_pr=1" in self.path:
            self.hub.pull_requests += 1
            answer["pullRequestUrl"] = self.url(f"{name}/discussions/{self.hub.pull_requests}")
            sha = "f" * 40
        else:
            sha = self.repository(name).commit(branch, files, message)
        self.answer({"commitUrl": self.url(f"{name}/commit/{sha}"), "commitOid": sha, **answer})

    def url(self, path: str) -> str:
        return f"http://{self.headers['Host']}/{path}"

    def answer(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    ROUTES: ClassVar[dict[str, Callable[..., None]]] = {
        "POST /api/repos/create": create,
        "POST /api/validate-yaml": validate,
        r"GET /api/models/([^/]+/[^/]+)": info,
        r"GET /api/models/([^/]+/[^/]+)/revision/(.+)": info,
        r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)/?": tree,
        r"POST /api/models/([^/]+/[^/]+)/preupload/(.+)": preupload,
        r"POST /api/models/([^/]+/[^/]+)/commit/(.+)": commit,
        r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
        r"PUT /lfs/(\w+)": upload,
        r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": resolve,
    }


@contextmanager
def serving(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serves a hub here, and sends huggingface_hub to it, without any account's token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    template = place + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
    monkeypatch.setattr(constants, "ENDPOINT", place)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    try:
        yield
    finally:
        huggingface_hub.close_session()  # else connections wait for the server that is going
        server.shutdown()
        server.server_close()
        thread.join()
