"""An S3 server for the tests, in a process of its own, that fails as it is told: by rules, or by a seeded plan.

It speaks the part of S3 that obstore, deltalake and Arrow need. Faults are of HTTP itself, so that the real clients meet them:

    slow_down   503 SlowDown, nothing done            cut     the connection ends, nothing done
    error       done, but the answer is a 500         lost    done, but the connection ends without an answer
    half        half of the bytes, in or out          delay   done, after 0.3 s
    expired     403 ExpiredToken                      hang    no answer for a minute
"""

import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "lakes"
KINDS = ("slow_down", "delay", "cut", "lost", "error", "half")
"""What a seeded plan chooses from. What lasts (expired, hang) is a rule's."""
SAID = {"slow_down": (503, "SlowDown"), "error": (500, "InternalError"), "expired": (403, "ExpiredToken")}
_RANDOM = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}")


class Flaky:
    """The server as a test sees it."""

    def __init__(self) -> None:
        line = [sys.executable, __file__]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients need to know."""
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true"}

    def fail(self, kind: str, method: str = ".*", path: str = ".*", times: int = 1, after: int = 0) -> None:
        """So many requests whose method and path (with its query) are these fail so, `after` so many that do not."""
        self._tell({"rule": [kind, method, path, times, after]})

    def plan(self, seed: int, share: float) -> None:
        """From now on this share of requests fails, as the seed says: of the same request always in the same way."""
        self._tell({"seed": seed, "share": share})

    def heal(self) -> None:
        """Nothing fails from now on."""
        self._tell({"heal": True})

    def counts(self) -> dict[str, int]:
        """How many requests there were, by method, and how many failed, by kind."""
        return dict(self._tell({}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A server that takes connections and says nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()

    def _tell(self, words: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/_control", json.dumps(words).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


class _Faults:
    """What fails next."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rules: list[list[Any]] = []
        self.seed, self.share = 0, 0.0
        self.seen: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def tell(self, words: dict[str, Any]) -> dict[str, int]:
        with self.lock:
            if "rule" in words:
                self.rules.append(words["rule"])
            if "seed" in words:
                self.seed, self.share = words["seed"], words["share"]
                self.seen.clear()
            if "heal" in words:
                self.rules, self.share = [], 0.0
            return dict(self.counts)

    def next(self, method: str, path: str) -> str | None:
        with self.lock:
            self.counts[method] += 1
            kind = self._rule(method, path) or self._planned(method, path)
            self.counts[str(kind)] += kind is not None
            return kind

    def _rule(self, method: str, path: str) -> str | None:
        for rule in self.rules:
            if rule[3] and re.fullmatch(rule[1], method) and re.search(rule[2], path):
                rule[4] -= 1
                if rule[4] < 0:
                    rule[3] -= 1
                    return str(rule[0])
        return None

    def _planned(self, method: str, path: str) -> str | None:
        if not self.share:
            return None
        named = f"{method} {_RANDOM.sub('*', path)}"
        self.seen[named] += 1
        chosen = random.Random(f"{self.seed} {named} {self.seen[named]}")
        return chosen.choice(KINDS) if chosen.random() < self.share else None


FAULTS = _Faults()
OBJECTS: dict[str, tuple[bytes, dict[str, str]]] = {}
"""key → bytes, and what was said of them."""
UPLOADS: dict[str, dict[int, bytes]] = {}
LOCK = threading.Lock()


class _Cut(Exception):
    """The connection ends."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        split = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
        self.bucket, _, self.key = unquote(split.path).lstrip("/").partition("/")
        length = int(self.headers.get("Content-Length") or 0)
        if split.path == "/_control":
            self.answer(200, json.dumps(FAULTS.tell(json.loads(self.rfile.read(length)))).encode())
            return
        kind = FAULTS.next(self.command, self.path)
        try:
            if kind == "half" and length > 1:
                self.rfile.read(length // 2)
                raise _Cut
            self.body = self.rfile.read(length)
            self.wait(kind)
            code, body, headers = self.said(kind) if kind in ("slow_down", "expired") else self.act()
            if kind == "lost":
                raise _Cut
            if kind == "error":
                code, body, headers = self.said(kind)
            self.answer(code, body, headers, half=kind == "half")
        except _Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    def wait(self, kind: str | None) -> None:
        """Before anything is done."""
        if kind in ("delay", "hang"):
            time.sleep(0.3 if kind == "delay" else 60.0)
        if kind == "cut":
            raise _Cut

    def said(self, kind: str) -> tuple[int, bytes, dict[str, str]]:
        code, word = SAID[kind]
        return self.error(code, word)

    def error(self, code: int, word: str) -> tuple[int, bytes, dict[str, str]]:
        return code, f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>{word}</Message></Error>".encode(), {}

    def act(self) -> tuple[int, bytes, dict[str, str]]:
        """Do it: status, body, headers."""
        if self.bucket != BUCKET:
            return self.error(404, "NoSuchBucket")
        with LOCK:
            if not self.key:
                return self.delete_many() if "delete" in self.query else self.list()
            return getattr(self, self.command.lower())()

    def get(self) -> tuple[int, bytes, dict[str, str]]:
        if self.key not in OBJECTS:
            return self.error(404, "NoSuchKey")
        data, headers = OBJECTS[self.key]
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return 200, data, headers
        first, last = wanted.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        stop = min(int(last) + 1 if first and last else len(data), len(data))
        if start >= len(data):
            return self.error(416, "InvalidRange")
        return 206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    head = get

    def put(self) -> tuple[int, bytes, dict[str, str]]:
        if "partNumber" in self.query:
            UPLOADS[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
            return 200, b"", {"ETag": _etag(self.body)}
        if source := self.headers.get("x-amz-copy-source"):
            found = OBJECTS.get(unquote(source).lstrip("/").partition("/")[2])
            if found is None:
                return self.error(404, "NoSuchKey")
            OBJECTS[self.key] = found
            return 200, f"<CopyObjectResult><ETag>{found[1]['ETag']}</ETag></CopyObjectResult>".encode(), {}
        if self.headers.get("If-None-Match") == "*" and self.key in OBJECTS:
            return self.error(412, "PreconditionFailed")
        return 200, b"", {"ETag": self.keep(self.body)}

    def post(self) -> tuple[int, bytes, dict[str, str]]:
        if "uploads" in self.query:
            upload = f"{len(UPLOADS)}-{random.getrandbits(64):x}"
            UPLOADS[upload] = {}
            said = f"<UploadId>{upload}</UploadId><Bucket>{BUCKET}</Bucket><Key>{escape(self.key)}</Key>"
            return 200, f"<InitiateMultipartUploadResult>{said}</InitiateMultipartUploadResult>".encode(), {}
        parts = UPLOADS.get(self.query["uploadId"])
        if parts is None:
            return self.error(404, "NoSuchUpload")
        etag = self.keep(b"".join(parts[number] for number in sorted(parts)))
        said = (
            f"<ETag>{escape(etag)}</ETag><Location>x</Location><Bucket>{BUCKET}</Bucket><Key>{escape(self.key)}</Key>"
        )
        return 200, f"<CompleteMultipartUploadResult>{said}</CompleteMultipartUploadResult>".encode(), {}

    def delete(self) -> tuple[int, bytes, dict[str, str]]:
        OBJECTS.pop(self.key, None)
        return 204, b"", {}

    def delete_many(self) -> tuple[int, bytes, dict[str, str]]:
        keys = [key.decode() for key in re.findall(rb"<Key>(.*?)</Key>", self.body)]
        for key in keys:
            OBJECTS.pop(key, None)
        said = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return 200, f"<DeleteResult>{said}</DeleteResult>".encode(), {}

    def list(self) -> tuple[int, bytes, dict[str, str]]:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        after = self.query.get("continuation-token") or self.query.get("start-after") or ""
        most, said, seen = min(int(self.query.get("max-keys", 1000)), 1000), [], ""
        keys = [key for key in sorted(OBJECTS) if key.startswith(prefix) and key > after]
        count, last, more = 0, "", False
        for key in keys:
            folder = delimiter and delimiter in key[len(prefix) :]
            name = prefix + key[len(prefix) :].split(delimiter)[0] + delimiter if folder else key
            if name != seen:
                if count == most:
                    more = True
                    break
                count, seen = count + 1, name
                said.append(self.entry(name, folder=bool(folder)))
            last = key
        said.append(f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{count}</KeyCount>")
        said += [f"<NextContinuationToken>{escape(last)}</NextContinuationToken>"] if more else []
        head = f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
        return 200, f"<?xml version='1.0'?><ListBucketResult>{head}{''.join(said)}</ListBucketResult>".encode(), {}

    def entry(self, name: str, *, folder: bool) -> str:
        if folder:
            return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
        data, headers = OBJECTS[name]
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(float(headers["x-at"])))
        told = f"<Key>{escape(name)}</Key><LastModified>{at}</LastModified><ETag>{escape(headers['ETag'])}</ETag>"
        return f"<Contents>{told}<Size>{len(data)}</Size><StorageClass>STANDARD</StorageClass></Contents>"

    def keep(self, data: bytes) -> str:
        own = {name.lower(): value for name, value in self.headers.items() if name.lower().startswith("x-amz-meta-")}
        now = time.time()
        said = {"ETag": _etag(data), "Last-Modified": formatdate(now, usegmt=True), "x-at": str(now)}
        OBJECTS[self.key] = data, {**said, **own}
        return said["ETag"]

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, *, half: bool = False) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            raise _Cut

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """Clients go away as they like."""


def _serve() -> None:
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # with who started it
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
