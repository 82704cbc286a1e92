"""A registry of images over loopback HTTP, which a Docker daemon trusts by default: images as they were saved.

https://distribution.github.io/distribution/spec/api/
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"


class Registry:
    """What it has, who may pull, and what it was asked for."""

    def __init__(self) -> None:
        self.address = ""
        self.account: tuple[str, str] | None = None
        self.asked: list[str] = []
        self.goes_on = threading.Event()
        """Not set, it answers nobody who asks for more than a manifest."""
        self.goes_on.set()
        self._content: dict[str, tuple[str, bytes]] = {}

    def add(self, name: str, tag: str, saved: bytes, **config: Any) -> str:  # noqa: ANN401 - of the image
        """Have an image, of which some of the configuration is other than it was saved; returns its digest."""
        with tarfile.open(fileobj=io.BytesIO(saved)) as tar:
            files = {each.name: tar.extractfile(each) for each in tar if each.isfile()}
            read = {path: file.read() for path, file in files.items() if file is not None}
        (image,) = json.loads(read["manifest.json"])
        told = json.loads(read[image["Config"]])
        told |= {key: value for key, value in config.items() if key != "Env"}
        told["config"] |= {"Env": config["Env"]} if "Env" in config else {}
        told["config"]["Labels"] = {"registry": self.address}  # so that no other test's image is the same
        layers = [self._blob(name, _LAYER, gzip.compress(read[path], mtime=0)) for path in image["Layers"]]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._blob(name, _CONFIG, json.dumps(told).encode()),
            "layers": layers,
        }
        content = json.dumps(manifest).encode()
        digest = _digest(content)
        for reference in (tag, digest):
            self._content[f"/v2/{name}/manifests/{reference}"] = MANIFEST, content
        return digest

    def allows(self, header: str | None) -> bool:
        """True of who has the account, and of everybody where there is none."""
        if self.account is None:
            return True
        return header == f"Basic {base64.b64encode(':'.join(self.account).encode()).decode()}"

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Media type and content; None for what is not there."""
        self.asked.append(path)
        found = self._content.get(path) if path != "/v2/" else ("application/json", b"{}")
        if found is not None and found[0] in {_LAYER, _CONFIG}:
            self.goes_on.wait()
        return found

    def _blob(self, name: str, kind: str, content: bytes) -> dict[str, Any]:
        digest = _digest(content)
        self._content[f"/v2/{name}/blobs/{digest}"] = kind, content
        return {"mediaType": kind, "size": len(content), "digest": digest}


@contextmanager
def registry() -> Iterator[Registry]:
    """An empty one, that listens until the end."""
    made = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: object) -> None:
            """What it was asked for is in `asked`."""

        def _answer(self, *, body: bool) -> None:
            if not made.allows(self.headers.get("Authorization")):
                refused = {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}
                self._send(401, "application/json", json.dumps(refused).encode(), body=body)
            elif (found := made.answer(self.path)) is None:
                unknown = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self._send(404, "application/json", json.dumps(unknown).encode(), body=body)
            else:
                self._send(200, *found, body=body)

        def _send(self, code: int, kind: str, content: bytes, *, body: bool) -> None:
            self.send_response(code)
            self.send_header("Docker-Distribution-API-Version", "registry/2.0")
            if code == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Docker-Content-Digest", _digest(content))
            self.end_headers()
            if body:
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made.address = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            made.goes_on.set()
            server.shutdown()
            thread.join()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
