"""A server on the loopback interface that answers as W&B does, or as W&B does on a bad day."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENTITY = "tester"


class Server(ThreadingHTTPServer):
    """Keeps what it is sent.

    Attributes:
        fails: The status of every answer whose path holds ``failing``; None answers properly.
        delay: Seconds before every answer.
        requests: Method, path and body of what came, in order; of GraphQL, ``(operation, variables)`` in ``calls``.
    """

    daemon_threads = True

    def __init__(self, fails: int | None = None, failing: str = "/", delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fails, self.failing, self.delay = fails, failing, delay
        self.requests: list[tuple[str, str]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.streams: dict[str, list[dict[str, Any]]] = {}
        self.artifacts: dict[tuple[str, str], str] = {}  # (collection, digest) -> id: content is stored once
        self.names: dict[str, str] = {}  # of artifacts by id
        self.uploads: list[str] = []
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """A client that no longer waits is no news."""

    def called(self, operation: str) -> list[dict[str, Any]]:
        with self.guard:
            return [variables for name, variables in self.calls if name == operation]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        given = variables.get("input", variables)
        if operation == "UpsertBucket":
            project = {"id": "p", "name": given.get("project") or "mmp", "entity": {"id": "e", "name": ENTITY}}
            name, title = given.get("name"), given.get("displayName") or given.get("name")
            bucket = {"id": name, "name": name, "displayName": title, "config": "{}", "sweepName": None}
            bucket |= {"historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation in ("Viewer", "RunResumeStatus"):
            viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer, "model": None}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":
            name = given["artifactCollectionName"]
            with self.guard:
                known = (name, given["digest"]) in self.artifacts
                key = self.artifacts.setdefault((name, given["digest"]), f"a{len(self.artifacts)}")
                self.names[key] = name
            state = "COMMITTED" if known else "PENDING"
            sequence = {"id": f"s-{name}", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": key, "state": state, "artifactSequence": sequence}}}
        if operation == "CreateArtifactManifest":
            file = {"id": "f", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json", "uploadHeaders": []}
            file |= {"uploadUrl": f"{self.url}/put/manifest"}
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "UpdateArtifactManifest":
            file = {"id": "f", "name": "wandb_manifest.json", "displayName": "wandb_manifest.json", "uploadHeaders": []}
            file |= {"uploadUrl": f"{self.url}/put/manifest"}
            return {"updateArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "CreateArtifactFiles":
            edges = []
            for file in given["artifactFiles"]:
                target = f"{self.url}/put/{self.names[file['artifactID']]}/{file['name']}"
                node = {"id": "f", "name": file["name"], "displayName": file["name"], "uploadUrl": target}
                node |= {"uploadHeaders": [], "storagePath": "x", "uploadMultipartUrls": None}
                edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
        if operation == "ArtifactType":
            return {"project": None}
        if operation == "UseArtifact":
            return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
        return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        with server.guard:
            server.requests.append((self.command, self.path))
        time.sleep(server.delay)
        if server.fails is not None and server.failing in self.path:
            self.send(server.fails, b"bad day")
            return
        content: dict[str, Any] = {}
        if self.path == "/graphql":
            query = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
            variables = query.get("variables") or {}
            with server.guard:
                server.calls.append((operation[1] if operation else "?", variables))
            content = {"data": server.answer(operation[1] if operation else "?", variables)}
        elif self.path.endswith("/file_stream"):
            with server.guard:
                server.streams.setdefault(self.path.split("/")[-2], []).append(json.loads(body))
        elif self.command == "PUT":
            with server.guard:
                server.uploads.append(self.path.removeprefix("/put/"))
        self.send(200, json.dumps(content).encode())

    do_GET = do_POST = do_PUT = respond

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(fails: int | None = None, failing: str = "/", delay: float = 0.0) -> Iterator[Server]:
    """Run a server for a ``with`` block."""
    server = Server(fails, failing, delay)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def closed_port() -> str:
    """Return the address of a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def environment(url: str, home: Path) -> dict[str, str]:
    """Return variables that send W&B to a server, and keep its folders below one of the test's."""
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, **isolated(home)}


def isolated(home: Path) -> dict[str, str]:
    """Return variables that keep W&B from every server but the one it is told, and its folders below one."""
    folders = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CACHE", "DATA", "CONFIG")}
    return {**folders, "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc")}
