"""The part of the Hugging Face hub's API that an upload uses, on loopback: repositories, large files, commits."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = (".safetensors",)
"""Files that are uploaded by themselves; the others are in the commit."""


class FakeHub(ThreadingHTTPServer):
    """Keeps what it is sent.

    files      repository -> name -> content
    private    repository -> whether it was created as a private one
    requests   method and path of each request
    cards      model cards that it was asked to validate
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.cards: list[str] = []
        self.refuse_commits = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_POST(self) -> None:
        body = self._body()
        path = self._note()
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(LARGE) else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self._answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self) -> None:
        self.server.large[self._note().rsplit("/", 1)[-1]] = self._body()
        self._answer({})

    def do_GET(self) -> None:
        path = self._note()
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.server.files.get("/".join(parts[2:4]), {})
            if "tree" in parts:
                self._answer([{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()])
            else:
                about = {"id": "/".join(parts[2:4]), "sha": "0" * 40, "private": True}
                self._answer(about | {"siblings": [{"rfilename": name} for name in files]})
        else:
            self._answer({"name": "me", "type": "user", "orgs": []})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.files:
            self._answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.files[name] = {}
        self.server.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
        self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _commit(self, name: str, body: bytes) -> None:
        if self.server.refuse_commits:
            self._answer({"error": "no space left in your account"}, 403)
            return
        files = self.server.files[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self._answer({"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True})

    def _note(self) -> str:
        path = self.path.split("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization", ""))
        return path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: Any, code: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
