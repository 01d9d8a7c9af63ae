"""A Hub in this process: repositories can be made on it, uploaded to and downloaded from.

It speaks the protocol of huggingface_hub's client, with weights over Git LFS (not Xet), and keeps the last
commit of each repository.
"""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_writer"
FORBIDDEN = "others"  # a namespace in which TOKEN may not write


@dataclass
class Repository:
    private: bool
    commit: str = sha1(b"empty").hexdigest()
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def serve_hub():
    """A running Hub with its `url`, and its `repositories` by name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.objects = {}, {}
    threading.Thread(target=server.serve_forever).start()
    with server:
        yield server
        server.shutdown()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, parts = self.body(), self.parts()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif parts[1:] == ["repos", "create"]:
            self.create(json.loads(body))
        elif parts[1:] == ["validate-yaml"]:
            self.answer({"warnings": []})
        elif parts[-2:] == ["objects", "batch"]:  # where to put large files
            objects = json.loads(body)["objects"]
            for each in objects:
                each["actions"] = {"upload": {"href": f"{self.server.url}/objects/{each['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        elif parts[4] == "preupload":  # which files are large
            files = json.loads(body)["files"]
            for each in files:
                mode = "lfs" if is_large(each["path"]) else "regular"
                each |= {"uploadMode": mode, "shouldIgnore": False}
            self.answer({"files": files})
        elif parts[4] == "commit":
            self.commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])

    def create(self, wanted: dict) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] == FORBIDDEN:
            self.answer({}, 403, {"X-Error-Message": "No rights in this namespace"})
        else:
            known = name in self.server.repositories
            if not known:
                self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
            self.answer({"url": f"{self.server.url}/{name}"}, 409 if known else 200)

    def commit(self, name: str, operations: list[dict]) -> None:
        repository = self.server.repositories[name]
        for value in (each["value"] for each in operations if each["key"] != "header"):
            large = is_large(value["path"])
            content = self.server.objects[value["oid"]] if large else base64.b64decode(value["content"])
            repository.files[value["path"]] = content
        repository.commit = sha1(f"{repository.commit} {operations}".encode()).hexdigest()
        url = f"{self.server.url}/{name}/commit/{repository.commit}"
        self.answer({"commitUrl": url, "commitOid": repository.commit})

    def do_PUT(self) -> None:
        content = self.body()
        self.server.objects[sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self) -> None:
        parts = self.parts()
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        repository = self.server.repositories.get(name)
        if repository is None:
            self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})
        elif parts[0] != "api":  # name/repo/resolve/revision/file
            content = repository.files[parts[4]]
            etag = (sha256 if is_large(parts[4]) else sha1)(content).hexdigest()
            self.answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit})
        elif "tree" in parts:
            self.answer([describe(path, content) for path, content in repository.files.items()])
        else:
            self.answer({"id": name, "sha": repository.commit, "private": repository.private})

    do_HEAD = do_GET

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def parts(self) -> list[str]:
        return urlsplit(self.path).path.strip("/").split("/")

    def answer(self, body: bytes | dict | list, status: int = 200, headers: dict | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def describe(path: str, content: bytes) -> dict:
    """A file in a repository's listing."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": sha1(content).hexdigest()}
    if is_large(path):
        entry["lfs"] = {"oid": sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
