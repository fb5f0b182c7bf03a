"""A Hugging Face hub of one data set on this machine: the few answers that `datasets` asks for while it streams."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(folder: Path, name: str, kind: str = "datasets/") -> Iterator[str]:
    """Serve `folder` as the data set `name`; yield the address of the hub, the value of HF_ENDPOINT.

    `kind` is "" for a model.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in (headers | {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).rstrip("/")
            for revision in ("main", COMMIT):
                file, tree = f"/{kind}{name}/resolve/{revision}/", f"/api/datasets/{name}/tree/{revision}"
                if path.startswith(file) and (folder / path.removeprefix(file)).is_file():
                    return self.send_file((folder / path.removeprefix(file)).read_bytes())
                if path.startswith(tree) and (folder / path.removeprefix(tree).strip("/")).is_dir():
                    within = folder / path.removeprefix(tree).strip("/")
                    everything = "recursive=true" in self.path.lower()
                    return self.send_json([entry(p) for p in (within.rglob("*") if everything else within.iterdir())])
            if path.startswith(f"/api/datasets/{name}/revision/"):
                return self.send_json({"id": name, "sha": COMMIT, "siblings": []})
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def send_json(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def send_file(self, data: bytes) -> None:
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            if "Range" not in self.headers:
                return self.send(200, data, headers)
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            span = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            return self.send(206, part, headers | {"Content-Range": span})

    def entry(path: Path) -> dict:
        kind = "file" if path.is_file() else "directory"
        oid = hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else "0" * 40
        return {"type": kind, "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": oid}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
