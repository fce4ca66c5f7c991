"""A stand-in of the Hub: as much of its HTTP API as publishing and loading adapters and data sets needs.

    with Hub() as hub:
        hub.add("user/adapter", {"adapter_config.json": b"...", "README.md": path})
        hub.run([sys.executable, "recipes/predict.py", "--adapter", "user/adapter", ...], home=tmp_path)

`HF_ENDPOINT` is read when huggingface_hub is imported, so what talks to the stand-in runs in a process of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import fork_server

Files = dict[str, bytes]
TOKEN = "hf_owner"  # may read and write everything
COMMIT_ID = re.compile("[0-9a-f]{40}")
REPOSITORY = re.compile(
    r"/(?:(models|datasets)/)?([^/]+/[^/]+?)(?:/(resolve|revision|tree|preupload|commit|branch)/([^/]+))?(/.*)?"
)
LFS = (".parquet", ".safetensors", ".zip")  # files that the Hub keeps elsewhere


@dataclass
class Repository:
    """Commits, oldest first, and what names them."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, revision: str) -> str:
        """Adds a commit under a branch or tag, or under its own id (40 hex)."""
        content = json.dumps([len(self.commits), sorted((path, blob_id(each)) for path, each in files.items())])
        oid = revision if COMMIT_ID.fullmatch(revision) else hashlib.sha1(content.encode()).hexdigest()
        self.commits.append((oid, files))
        self.refs[revision] = oid
        return oid

    def at(self, revision: str) -> tuple[str, Files] | None:
        oid = self.refs.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == oid), None)


class Hub:
    """The server, on a port of its own; `with Hub() as hub:` starts and stops it.

    Attributes:
        url: its address, for `HF_ENDPOINT`.
        repositories: (`models` or `datasets`, id) -> repository.
        requests: (method, path) of every request so far.
        downloads: paths `id/file` of every GET of a file that was answered with it.
        failing: end of the path of a file -> status, such as 503, that it is answered with wherever it is kept.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.downloads: list[str] = []
        self.failing: dict[str, int] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(
        self,
        name: str,
        files: dict[str, bytes | str | Path] | Path,
        kind: str = "models",
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """A commit that holds exactly `files` (or all of a folder) becomes `revision`; returns its id (40 hex)."""
        if isinstance(files, Path):
            files = {str(path.relative_to(files)): path for path in files.rglob("*") if path.is_file()}
        content = {
            path: each.read_bytes() if isinstance(each, Path) else each.encode() if isinstance(each, str) else each
            for path, each in files.items()
        }
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.private, repository.gated = private, gated
        return repository.commit(content, revision)

    def files(self, name: str, kind: str = "models", revision: str = "main") -> Files:
        """What a repository holds."""
        return self.repositories[kind, name].at(revision)[1]

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process that is to talk to the stand-in; `home` takes its caches."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
        hub = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1,localhost"}
        off = {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "PROGRESS_BARS", "TELEMETRY")}
        return {**inherited, **hub, **off, "OMP_NUM_THREADS": "1", **({"HF_TOKEN": token} if token else {})}

    def run(
        self, command: list[str], home: Path, token: str | None = TOKEN, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `command` with the stand-in as its Hub; `environment` holds further variables."""
        variables = {**self.environment(home, token), **environment}
        if command[0] == sys.executable:
            return fork_server.run(command, env=variables, timeout=timeout)
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout, check=False)


class Handler(BaseHTTPRequestHandler):
    """Answers of the stand-in; a subclass knows the `hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass  # not on the tests' stderr

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), url.path
        self.hub.requests.append((self.command, unquote(path)))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = next((status for end, status in self.hub.failing.items() if unquote(path).endswith(end)), None)
        if status is not None:
            return self.missing("", status, message="Out of order.")
        if path.startswith("/store/"):
            return self.stored(unquote(path))
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.reply(json.dumps({"errors": [], "warnings": []}))
        match = REPOSITORY.fullmatch(path.removeprefix("/api"))
        if not match:
            return self.missing("EntryNotFound")
        kind, name, action, revision, rest = (each and unquote(each) for each in match.groups())
        repository = self.hub.repositories.get((kind or "models", name))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repository is None or (repository.private and token != TOKEN):
            # As the Hub does: whoever may not see a repository is told that there is none.
            return self.missing("RepoNotFound", status=404 if token else 401)
        if repository.gated and action == "resolve" and token != TOKEN:
            return self.missing("GatedRepo", status=403 if token else 401, message="Access is restricted.")
        if action in ("preupload", "commit", "branch") and token != TOKEN:
            return self.missing("", status=403 if token else 401, message="You do not have write access")
        if action == "branch":
            repository.refs.setdefault(revision, repository.refs["main"])
            return self.reply("{}")
        commit = repository.at(revision or "main")
        if commit is None:
            return self.missing("RevisionNotFound")
        oid, files = commit
        path = (rest or "").strip("/")
        if action == "resolve":
            return self.file(kind or "models", name, oid, path, files)
        if action == "tree":
            return self.tree(oid, path, files)
        if action == "preupload":
            return self.preupload(files)
        if action == "commit":
            return self.commit(repository, name, revision, files)
        return self.reply(json.dumps(description(name, oid, files, repository.private)))

    do_GET = do_HEAD = do_POST = answer

    def create(self, wanted: dict) -> None:
        kind = "datasets" if wanted.get("type") == "dataset" else "models"
        name = f"{wanted.get('organization') or 'user'}/{wanted['name'].rpartition('/')[2]}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.missing("", status=401, message="Invalid username or password.")
        if (kind, name) in self.hub.repositories:
            return self.reply(json.dumps({"url": url}), status=409)
        self.hub.repositories[kind, name] = Repository(private=wanted.get("visibility") == "private")
        self.hub.repositories[kind, name].commit({}, "main")
        return self.reply(json.dumps({"url": url}))

    def file(self, kind: str, name: str, oid: str, path: str, files: Files) -> None:
        if path not in files:
            return self.missing("EntryNotFound", **{"X-Repo-Commit": oid})
        content, headers = files[path], {"X-Repo-Commit": oid}
        if not path.endswith(LFS):
            return self.content(f"{name}/{path}", content, **headers)
        headers |= {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        # Another host to whoever reads the address.
        store = f"http://localhost:{self.hub.server.server_port}/store"
        return self.reply("Found", 302, **headers, Location=quote(f"{store}/{kind}/{name}/{oid}/{path}", safe=":/"))

    def stored(self, address: str) -> None:
        """A file from the store of LFS files, whose addresses say who may have it: one with a token is refused."""
        if self.headers.get("Authorization"):
            return self.missing("", status=400, message="Only one auth mechanism allowed.")
        _, _, kind, owner, name, oid, path = address.split("/", 6)
        _, files = self.hub.repositories[kind, f"{owner}/{name}"].at(oid)
        return self.content(f"{owner}/{name}/{path}", files[path])

    def content(self, path: str, content: bytes, **headers: str) -> None:
        headers = {**headers, "ETag": f'"{blob_id(content)}"', "Accept-Ranges": "bytes"}
        if self.command == "GET":
            self.hub.downloads.append(path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return self.reply(content, **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.reply(content[first : last + 1], status=206, **headers)

    def tree(self, oid: str, folder: str, files: Files) -> None:
        prefix = f"{folder}/" if folder else ""
        below = sorted(path for path in files if path.startswith(prefix))
        if folder and not below:
            return self.missing("EntryNotFound", **{"X-Repo-Commit": oid})
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path in below:
            first, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                entries[prefix + first] = {"type": "directory", "path": prefix + first, "size": 0, "oid": oid}
            if recursive or not rest:
                size, blob = len(files[path]), blob_id(files[path])
                entries[path] = {"type": "file", "path": path, "size": size, "oid": blob}
        return self.reply(json.dumps(list(entries.values())))

    def preupload(self, files: Files) -> None:
        paths = [each["path"] for each in json.loads(self.body)["files"]]
        blobs = [blob_id(files[path]) if path in files else None for path in paths]
        known = {"uploadMode": "regular", "shouldIgnore": False}
        answers = [{"path": path, "oid": blob, **known} for path, blob in zip(paths, blobs, strict=True)]
        return self.reply(json.dumps({"files": answers}))

    def commit(self, repository: Repository, name: str, revision: str, files: Files) -> None:
        files = dict(files)
        for line in filter(None, self.body.decode().splitlines()):
            operation = json.loads(line)
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        oid = repository.commit(files, revision)
        return self.reply(json.dumps({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}))

    def missing(self, code: str, status: int = 404, message: str = "", **headers: str) -> None:
        self.reply(
            json.dumps({"error": message or code}), status, **headers, **({"X-Error-Code": code} if code else {})
        )

    def reply(self, content: str | bytes, status: int = 200, **headers: str) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        kind = "application/json" if isinstance(content, str) else "application/octet-stream"
        for header, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def blob_id(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def description(name: str, oid: str, files: Files, private: bool) -> dict:
    siblings = [{"rfilename": path} for path in sorted(files)]
    flags = {"private": private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {"_id": oid[:24], "id": name, "sha": oid, "siblings": siblings, "cardData": {}, **flags}
