"""A hub on loopback: as much of its HTTP interface as reading a dataset needs."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import served

TOKEN = "hf_" + "t" * 34


@dataclass
class Dataset:
    """Commits by their sha, branches by name. What is larger than a card goes by Git LFS."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    private: bool = False
    gated: bool = False


@dataclass
class Content:
    """How files are sent, and what was asked for."""

    sent: list[tuple[str, int]] = field(default_factory=list)  # (path, bytes) of each answer
    cut: int = 0  # so many answers end halfway
    cut_after: int = 0  # but for so many, which come first
    spoilt: int = 0  # so many have another byte
    broken: str = ""  # paths with this in them are answered by status 404


class DatasetHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.datasets: dict[str, Dataset] = {}
        self.content = Content()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def forget(self) -> None:
        """Nothing is published, and nothing was asked for."""
        self.datasets, self.content = {}, Content()

    def publish(self, name: str, files: dict[str, bytes], branch: str = "main") -> Dataset:
        """Make a commit of these files the head of a branch."""
        told = b"".join(path.encode() + data for path, data in sorted(files.items()))
        sha = hashlib.sha1(told).hexdigest()
        dataset = self.datasets.setdefault(name, Dataset({}, {}))
        dataset.commits[sha], dataset.branches[branch] = files, sha
        return dataset


class Handler(BaseHTTPRequestHandler):
    server: DatasetHub
    protocol_version = "HTTP/1.1"

    def reply(self, content: object, status: int = 200, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, code: str, said: str) -> None:
        self.reply({"error": said}, status, X_Error_Code=code, X_Error_Message=said)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/cdn/"):
            self.send_content(path.removeprefix("/cdn/"))
        elif path.startswith("/api/datasets/"):
            self.answer(path.removeprefix("/api/datasets/"), resolving=False)
        else:
            self.answer(path.removeprefix("/datasets/"), resolving=True)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        asked = json.loads(body) if body.startswith("{") else parse_qs(body)
        self.answer(
            unquote(self.path).removeprefix("/api/datasets/"), resolving=False, paths=asked["paths"]
        )

    def answer(self, path: str, *, resolving: bool, paths: list[str] | None = None) -> None:
        """One request for a dataset: OWNER/NAME[/KIND/REVISION[/PATH]]."""
        owner, name, kind, revision, *inside = [*path.split("/"), "revision", "main"][:5]
        inside = path.split("/")[4:]
        dataset = self.server.datasets.get(f"{owner}/{name}")
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if dataset is None or (dataset.private and not known):
            self.refuse(401, "RepoNotFound", "Repository not found")
            return
        sha = dataset.branches.get(revision, revision)
        if sha not in dataset.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif dataset.gated and not known and kind != "revision":
            self.refuse(401, "GatedRepo", f"Access to dataset {owner}/{name} is restricted.")
        elif resolving:
            self.resolve(f"{owner}/{name}", sha, "/".join(inside), dataset.commits[sha])
        elif kind == "revision":
            siblings = [{"rfilename": file} for file in dataset.commits[sha]]
            told = {"id": f"{owner}/{name}", "sha": sha, "siblings": siblings}
            self.reply({**told, "private": dataset.private, "tags": [], "downloads": 0})
        else:
            self.list_files(dataset.commits[sha], "/".join(inside), paths)

    def list_files(self, files: dict[str, bytes], folder: str, paths: list[str] | None) -> None:
        """The tree below a folder, or what is known of some paths."""
        recursive = "recursive=" in self.path and "recursive=False" not in self.path
        entries: dict[str, dict] = {}
        for path, data in files.items():
            parents = ["/".join(path.split("/")[:n]) for n in range(1, path.count("/") + 1)]
            for parent in parents:
                entries[parent] = {"type": "directory", "path": parent, "oid": "0" * 40}
            entries[path] = {"type": "file", "path": path, "oid": "0" * 40, "size": len(data)}
            if is_large(path):
                digest = hashlib.sha256(data).hexdigest()
                entries[path]["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 1}
        if paths is not None:
            self.reply([entries[path] for path in paths if path in entries])
            return
        inside = f"{folder}/" if folder else ""
        found = [entry for path, entry in entries.items() if path.startswith(inside)]
        if folder and not found:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        top = [entry for entry in found if "/" not in entry["path"].removeprefix(inside)]
        self.reply(found if recursive else top)

    def resolve(self, name: str, sha: str, path: str, files: dict[str, bytes]) -> None:
        """Where a file's content is: behind a redirect where it is large."""
        data = files.get(path)
        if data is None or (self.server.content.broken and self.server.content.broken in path):
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X_Repo_Commit": sha, "X_Linked_Size": str(len(data))}
        if is_large(path):
            headers["X_Linked_Etag"] = f'"{digest}"'
        # Another host, as on the real hub: the headers above are this answer's alone.
        target = f"http://localhost:{self.server.server_port}/cdn/{name}/{sha}/{path}"
        self.reply("", 302, Location=target, ETag=f'"{digest}"', **headers)

    def send_content(self, path: str) -> None:
        """A file, or the range that is asked for."""
        owner, name, sha, *inside = path.split("/")
        data = self.server.datasets[f"{owner}/{name}"].commits[sha]["/".join(inside)]
        asked = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        start = int(asked[0] or 0)
        part = data[start : int(asked[2] or len(data)) + 1]
        self.send_response(206 if asked[0] else 200)
        if asked[0]:
            told = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
            self.send_header("Content-Range", told)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.end_headers()
        if self.command == "HEAD":
            return
        how = self.server.content
        how.sent.append(("/".join(inside), len(part)))
        if how.cut and len(how.sent) > how.cut_after and is_large(path):
            how.cut -= 1
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
            return
        if how.spoilt and is_large(path):
            how.spoilt -= 1
            part = part[:-1] + bytes([part[-1] ^ 1])
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        return


def is_large(path: str) -> bool:
    return path.endswith((".parquet", ".tar"))


@contextmanager
def dataset_hub() -> Iterator[DatasetHub]:
    with served(DatasetHub()) as server:
        yield server
