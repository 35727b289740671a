"""A server on this machine that answers as much of Weights & Biases' protocol as a test asks for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Service:
    """What the server was told, and what it tells."""

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}  # saved workspaces by name
        self.refuse = False  # to save a workspace
        self.sweep = ""  # YAML
        self.jobs: list[dict[str, Any]] = []  # settings of the sweep's jobs to come
        self.url = ""

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            if self.refuse:
                raise ValueError("project not found")
            self.views[given["name"]] = given
            return {"upsertView": {"view": {"id": "V1", "name": given["name"]}}}
        if "allViews" in query:
            view = self.views[given["viewName"]]
            node = {"id": "V1", "displayName": view["displayName"], "spec": view["spec"]}
            return {"project": {"allViews": {"edges": [{"node": node}]}}}
        if "upsertSweep" in query:
            self.sweep = given["config"]
            project = {"id": "p", "name": given["projectName"], "entity": {"id": "e", "name": "me"}}
            return {"upsertSweep": {"sweep": {"name": "abc123", "project": project}, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": "s", "name": "abc123", "config": self.sweep, "runs": {"edges": []}}}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "a"}}}
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(self._commands(given))}}
        me = {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": me}

    def _commands(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        if json.loads(given["runState"]):  # one at a time
            return []
        if not self.jobs:
            return [{"type": "exit"}]
        settings = {name: {"value": value} for name, value in self.jobs.pop(0).items()}
        return [{"type": "run", "run_id": f"job{len(self.jobs)}", "program": "run.py", "args": settings}]


@contextmanager
def serve() -> Iterator[Service]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/graphql":  # such as what wandb tells of its own errors
                return self.reply(404, {})
            asked = json.loads(body)
            try:
                self.reply(200, {"data": service.answer(asked["query"], asked.get("variables") or {})})
            except ValueError as error:
                self.reply(200, {"errors": [{"message": str(error)}]})

        def reply(self, code: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        service.url = f"http://127.0.0.1:{server.server_port}"
        yield service
        server.shutdown()
