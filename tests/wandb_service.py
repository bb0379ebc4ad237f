"""A stand-in for the W&B service, for tests: it keeps what a client sends and answers what a client asks.

It shows what our runs send, and that the pinned client understands its own questions answered; how a real service or
its pages take it, it cannot show.
"""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PROJECT = {"id": "P", "internalId": "P", "name": "align", "entity": {"id": "E", "name": "us"}}


class Service(http.server.ThreadingHTTPServer):
    """Attributes are what arrived: runs by id, artifacts in order, (run, artifact) uses, alerts, saved views."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.uses: list[tuple[str, str]] = []
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.refuses: int | None = None  # the status that every request gets, as 401 for a wrong key
        self.refuses_after = ""  # an operation after which it does; "": from the beginning
        self.slow = 0.0  # seconds before each answer
        self.silent_after = ""  # an operation after which it still accepts, and answers nothing
        self.ended = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends takes its connections with it."""

    def run_named(self, name: str) -> dict[str, Any]:
        (run,) = [run for run in self.runs.values() if run["name"] == name]
        return run

    def edges(self) -> set[tuple[str, str]]:
        """(run, artifact) by name, of what was used."""
        names = {artifact["id"]: artifact["name"] for artifact in self.artifacts}
        return {(self.runs[run]["name"], names[used]) for run, used in self.uses}

    def outputs(self, run_id: str) -> list[dict[str, Any]]:
        return [a for a in self.artifacts if a["run"] == run_id and not a["type"].startswith("run_table")]

    # -- what is asked by name -----------------------------------------------------------------------------------

    def answer(self, operation: str, given: dict[str, Any], query: str) -> Any:
        self.asked.append(operation)
        answer = getattr(self, f"_{operation}", None)
        if answer is None:
            self.unknown.append(f"{operation} {given} {query}")
            raise ValueError(f"the stand-in does not know {operation}")
        return answer(given)

    def _Viewer(self, given: dict[str, Any]) -> Any:
        teams = {"edges": []}
        viewer = {"id": "U", "username": "us", "entity": "us", "name": "us", "email": "", "admin": False, "flags": "{}"}
        return {"viewer": viewer | {"teams": teams}}

    def _GetDefaultEntity(self, given: dict[str, Any]) -> Any:
        return {"viewer": {"id": "U", "entity": "us"}}

    def _ServerFeaturesQuery(self, given: dict[str, Any]) -> Any:
        return {"serverInfo": {"features": []}}

    def _OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any]) -> Any:
        return {"entity": {"organization": None}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": None}
        last = run["history"][-1] if run["history"] else {}
        bucket = {
            "name": given["name"],
            "id": f"B{given['name']}",
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(last)] if last else []),
            "eventsTail": "[]",
            "config": json.dumps({key: {"value": value} for key, value in run["config"].items()}),
            "summaryMetrics": json.dumps(run["summary"]),
            "tags": run["tags"],
            "wandbConfig": json.dumps(run["config"].get("_wandb", {})),  # without its "t" a run counts as never begun
        }
        return {"model": {"id": "M", "name": "align", "entity": _PROJECT["entity"], "bucket": bucket}}

    def _UpsertBucket(self, given: dict[str, Any]) -> Any:
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(
            given["name"], {"tags": [], "config": {}, "history": [], "summary": {}, "exit": None, "starts": 0}
        )
        fields = {
            "displayName": "name",
            "groupName": "group",
            "jobType": "job_type",
            "tags": "tags",
            "project": "project",
        }
        run |= {ours: given[theirs] for theirs, ours in fields.items() if given.get(theirs)}
        if given.get("config"):
            run["config"] = {key: value["value"] for key, value in json.loads(given["config"]).items()}
        bucket = {"id": f"B{given['name']}", "name": given["name"], "displayName": run.get("name"), "description": None}
        bucket |= {"config": given.get("config"), "sweepName": None, "project": _PROJECT}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run["history"])}, "inserted": inserted}}

    def _RunStoppedStatus(self, given: dict[str, Any]) -> Any:
        return {"project": {"run": {"stopped": False}}}

    def _NotifyScriptableRunAlert(self, given: dict[str, Any]) -> Any:
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}

    def _UpsertView2(self, given: dict[str, Any]) -> Any:
        self.views.append(given)
        return {"upsertView": {"view": {"id": "V", "name": given["name"]}, "inserted": True}}

    # -- artifacts -----------------------------------------------------------------------------------------------

    def _CreateArtifact(self, given: dict[str, Any]) -> Any:
        given = given.get("input", given)
        number = len(self.artifacts)
        artifact = {
            "id": f"A{number}",
            "name": given["artifactCollectionName"],
            "type": given["artifactTypeName"],
            "run": given["runName"],
            "aliases": [alias["alias"] for alias in given.get("aliases") or []],
            "metadata": json.loads(given.get("metadata") or "{}"),
        }
        earlier = [a for a in self.artifacts if a["name"] == artifact["name"]]
        artifact["version"] = len(earlier)
        for other in earlier:  # an alias is of one version at a time
            other["aliases"] = [alias for alias in other["aliases"] if alias not in artifact["aliases"]]
        self.artifacts.append(artifact)
        sequence = {"id": f"S{artifact['name']}", "latestArtifact": None}
        return {
            "createArtifact": {"artifact": {"id": artifact["id"], "state": "PENDING", "artifactSequence": sequence}}
        }

    def _CreateArtifactManifest(self, given: dict[str, Any]) -> Any:
        url = f"{self.url}/storage/manifest/{given['artifactID']}"
        file = {"id": "F", "name": given["name"], "displayName": given["name"], "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"M{given['artifactID']}", "file": file}}}

    def _UpdateArtifactManifest(self, given: dict[str, Any]) -> Any:
        url = f"{self.url}/storage/manifest/{given['artifactManifestID'][1:]}"
        file = {"id": "F", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": file}}}

    def _CreateArtifactFiles(self, given: dict[str, Any]) -> Any:
        nodes = [
            {
                "id": "F",
                "name": spec["name"],
                "displayName": spec["name"],
                "uploadUrl": f"{self.url}/storage/{spec['name']}",
                "uploadHeaders": [],
                "storagePath": spec["name"],
                "uploadMultipartUrls": None,
                "artifact": {"id": spec["artifactID"]},
            }
            for spec in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, given: dict[str, Any]) -> Any:
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def _ArtifactType(self, given: dict[str, Any]) -> Any:
        collection = given["name"].partition(":")[0]
        kinds = [a["type"] for a in self.artifacts if a["name"] == collection]
        return {"project": {"artifact": {"artifactType": {"name": kinds[0]}} if kinds else None}}

    def _ArtifactMembershipByName(self, given: dict[str, Any]) -> Any:
        collection, _, alias = given["name"].partition(":")
        found = [a for a in self.artifacts if a["name"] == collection and alias in (*a["aliases"], f"v{a['version']}")]
        member = None
        if found:
            owner = {"__typename": "ArtifactSequence", "name": collection, "project": _PROJECT}
            member = {"__typename": "ArtifactCollectionMembership", "id": "M", "artifactCollection": owner}
            member |= {"versionIndex": found[0]["version"], "createdAt": "2026-01-01T00:00:00Z", "aliases": []}
            member |= {"artifact": self._described(found[0])}
        return {"project": {"artifactCollectionMembership": member}}

    def _described(self, artifact: dict[str, Any]) -> dict[str, Any]:
        owner = {"__typename": "ArtifactSequence", "name": artifact["name"], "project": _PROJECT}
        aliases = [*artifact["aliases"], f"v{artifact['version']}"]
        shown = {"__typename": "ArtifactAlias", "id": "L", "artifactCollection": owner}
        described: dict[str, Any] = {"__typename": "Artifact", "id": artifact["id"], "artifactSequence": owner}
        described |= {"versionIndex": artifact["version"], "artifactType": {"name": artifact["type"]}, "tags": []}
        described |= {"aliases": [shown | {"alias": alias} for alias in aliases], "description": None}
        described |= {"metadata": json.dumps(artifact["metadata"]), "ttlDurationSeconds": -1, "ttlIsInherited": False}
        described |= {"historyStep": None, "state": "COMMITTED", "size": 0, "digest": "", "commitHash": ""}
        return described | {"fileCount": 1, "createdAt": "2026-01-01T00:00:00Z", "updatedAt": None}

    def _UseArtifact(self, given: dict[str, Any]) -> Any:
        given = given.get("input", given)
        self.uses.append((given["runName"], given["artifactID"]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._body()
        self._send({})

    def do_PUT(self) -> None:
        self.server.files[self.path.removeprefix("/storage/")] = self._body()
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        self.server.ended.wait(self.server.slow)
        if self.server.refuses is not None and self.server.refuses_after in ("", *self.server.asked):
            self.send_error(self.server.refuses)
            return
        if self.server.silent_after in self.server.asked:
            self.server.ended.wait()
        if self.path == "/graphql":
            asked = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = named[1] if named else asked["query"]
            try:
                data = self.server.answer(operation, asked.get("variables") or {}, asked["query"])
                self._send({"data": data})
            except Exception as error:
                self._send({"data": None, "errors": [{"message": repr(error)}]})
            return
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], json.loads(body))
        self._send({"exitcode": None, "limits": {}})

    def _stream(self, run_id: str, sent: dict[str, Any]) -> None:
        run = self.server.runs[run_id]
        for name, chunk in (sent.get("files") or {}).items():
            rows = [json.loads(line) for line in chunk["content"] if name != "output.log"]
            if name == "wandb-history.jsonl":
                run["history"][chunk["offset"] :] = rows
            elif name == "wandb-summary.json" and rows:
                run["summary"] = rows[-1]
        if "exitcode" in sent and sent["exitcode"] is not None:
            run["exit"] = sent["exitcode"]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Service]:
    """A stand-in that answers while the block runs."""
    with Service() as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,), daemon=True)  # it ends within that
        thread.start()
        try:
            yield service
        finally:
            service.ended.set()
            service.shutdown()
            thread.join()
