"""A server on the loopback interface that answers like W&B, or like a W&B server that is slow or failing."""

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
    """Records the requests of wandb.

    Attributes:
        fails: The status code of answers to paths that contain ``failing``; with None they are normal answers.
        failing: The part of a path that ``fails`` and ``delay`` apply to.
        delay: Seconds before every such answer.
        calls: Operation and variables of every GraphQL request, in order.
        streams: The requests with history, summary and exit code of each run, by the run's id.
        artifacts: The id of every artifact, by name and digest; each is stored once.
        uploads: Paths of the uploaded files.
    """

    daemon_threads = True

    def __init__(self, fails: int | None = None, failing: str = "/", delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fails, self.failing, self.delay = fails, failing, delay
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.streams: dict[str, list[dict[str, Any]]] = {}
        self.artifacts: dict[tuple[str, str], str] = {}
        self.names: dict[str, str] = {}  # of artifacts, by id
        self.uploads: list[str] = []
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Ignore clients that have closed the connection."""

    def called(self, operation: str) -> list[dict[str, Any]]:
        with self.guard:
            return [variables for name, variables in self.calls if name == operation]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the ``data`` of a GraphQL answer, with the fields that wandb-core reads."""
        given = variables.get("input", variables)
        match operation:
            case "Viewer" | "RunResumeStatus":
                viewer = {"id": "v", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}
                data = {"viewer": viewer, "model": None}
            case "UpsertBucket":
                project = {"id": "p", "name": given.get("project") or "mmp", "entity": {"id": "e", "name": ENTITY}}
                name, title = given.get("name"), given.get("displayName")
                bucket = {"id": name, "name": name, "displayName": title, "config": "{}", "historyLineCount": 0}
                data = {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in given["files"]]
                data = {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                data = {"project": None}
            case "CreateArtifact":
                data = {"createArtifact": {"artifact": self._artifact(given)}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest":
                manifest = {"id": "m", "file": self._file("wandb_manifest.json", "manifest")}
                data = {operation[0].lower() + operation[1:]: {"artifactManifest": manifest}}
            case "CreateArtifactFiles":
                edges = []
                for file in given["artifactFiles"]:
                    key, name = file["artifactID"], file["name"]
                    edges.append({"node": {**self._file(name, f"{self.names[key]}/{name}"), "artifact": {"id": key}}})
                data = {"createArtifactFiles": {"files": {"edges": edges}}}
            case "CommitArtifact":
                data = {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}
            case "UseArtifact":
                data = {"useArtifact": {"artifact": {"id": given["artifactID"]}}}
            case _:
                data = {}
        return data

    def _artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["artifactCollectionName"]
        with self.guard:
            known = (name, given["digest"]) in self.artifacts
            key = self.artifacts.setdefault((name, given["digest"]), f"a{len(self.artifacts)}")
            self.names[key] = name
        state = "COMMITTED" if known else "PENDING"
        return {"id": key, "state": state, "artifactSequence": {"id": f"s-{name}", "latestArtifact": None}}

    def _file(self, name: str, path: str) -> dict[str, Any]:
        file = {"id": "f", "name": name, "displayName": name, "uploadUrl": f"{self.url}/put/{path}"}
        return {**file, "uploadHeaders": [], "storagePath": "x", "uploadMultipartUrls": None}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Do not log requests."""

    def respond(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        if server.failing in self.path:
            time.sleep(server.delay)
            if server.fails is not None:
                self.send(server.fails, b"failing")
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

    do_GET = do_POST = do_PUT = respond  # noqa: N815  (the library's names)

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
    """Return a URL with a port on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def environment(url: str, home: Path) -> dict[str, str]:
    """Return environment variables that point W&B to a server, and its folders to one of the test."""
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, **isolated(home)}


def isolated(home: Path) -> dict[str, str]:
    """Return environment variables that keep W&B from the user's account and folders."""
    folders = {f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("CACHE", "DATA", "CONFIG")}
    return {**folders, "WANDB_ERROR_REPORTING": "false", "NETRC": str(home / "netrc")}
