"""A real S3 server (moto) in a process of its own, and a proxy in front of it that does what networks do.

The proxy forwards requests, and by a seeded plan answers with errors, cuts answers short, resets connections before or
after the request reaches the server (after: the PUT was applied, its answer is lost), or says nothing for too long.
"""

import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from maskmill.storage import remote

ERROR_500, SLOW_DOWN, RESET_BEFORE, RESET_AFTER, CUT, STALL = KINDS = (
    "500 InternalError", "503 SlowDown", "reset before", "reset after", "answer cut short", "stall",
)  # fmt: skip
READ_TIMEOUT = 2.0  # seconds, of clients that meet stalls
WORDS = {"500": "We encountered an internal error. Please try again.", "503": "Please reduce your request rate."}
ANSWER = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def moto(log: Path, page: int = 1000) -> Iterator[str]:
    """The URL of a running S3 server that forgets everything at its end. `page`: the keys in one answer."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(page)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).read()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def environment(url: str, **config: Any) -> dict[str, str]:
    """What a process needs to take the server at `url` for S3. `config`: keys of botocore's, `read_timeout=2`."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FSSPEC_S3": json.dumps({"config_kwargs": config}),
    }


def use(monkeypatch: pytest.MonkeyPatch, url: str, **config: Any) -> None:
    """From now on, this process and those it starts take the server at `url` for S3."""
    env = environment(url, **config)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "s3", json.loads(env["FSSPEC_S3"]))
    forget()


def forget() -> None:
    """File systems are kept by their options; the endpoint in the environment is not among these."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def put(url: str, data: bytes) -> None:
    """One object."""
    fs, path = remote.filesystem(url)
    fs.pipe_file(path, data)


def make_bucket(name: str) -> str:
    """A new bucket's URL."""
    fs, _ = remote.filesystem(f"s3://{name}")
    fs.call_s3("create_bucket", Bucket=name)
    return f"s3://{name}"


def upload(folder: Path, url: str) -> str:
    """Every file under `folder`, as url/<its path in the folder>."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            put(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


@dataclass
class Plan:
    """Which requests meet what. Counts what was done.

    `script`: the fates of the first requests. `rates`: kind -> share of all later requests. A kind may also be any
    `status Code`, `403 ExpiredToken`.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    script: list[str | None] = field(default_factory=list)
    seed: int = 0
    stall_s: float = READ_TIMEOUT + 1
    only: str = ""  # a method: only such requests meet anything
    call_at: int = 0  # the number of the request at which `call` is called, in the proxy's thread
    call: Callable[[], object] = lambda: None
    requests: int = 0
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.random = random.Random(self.seed)

    def next(self, method: str) -> str | None:
        """The fate of one request."""
        with self.lock:
            self.requests += 1
            if self.requests == self.call_at:
                self.call()
            if self.only not in ("", method):
                return None
            if self.script:
                kind = self.script.pop(0)
                self.injected.update([kind] if kind else [])
                return kind
            drawn = self.random.random()
            for kind, rate in self.rates.items():
                drawn -= rate
                if drawn < 0:
                    self.injected[kind] += 1
                    return kind
        return None


class Proxy(ThreadingHTTPServer):
    """Stands between clients and the server at `target`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target.removeprefix("http://")
        self.plan = Plan()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or reset by us."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def forward(self) -> None:
        """One request, and its fate."""
        plan = self.server.plan
        kind = plan.next(self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if kind == RESET_BEFORE:
            return self.reset()
        if kind == STALL:
            time.sleep(plan.stall_s)
            return self.reset()
        if kind is not None and kind[:3].isdigit():
            status, code = kind.split()
            data = ANSWER.format(code, WORDS.get(status, code)).encode()
            return self.answer(int(status), {"Content-Type": "application/xml"}, data)
        upstream = http.client.HTTPConnection(self.server.target, timeout=60)
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
        finally:
            upstream.close()
        if kind == RESET_AFTER:
            return self.reset()
        dropped = ("transfer-encoding", "content-length", "connection", "date", "server")
        headers = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        length = len(data) if self.command != "HEAD" else int(response.getheader("Content-Length") or 0)
        self.answer(response.status, headers, data, length, cut=kind == CUT)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def answer(
        self, status: int, headers: Mapping[str, str], data: bytes, length: int | None = None, cut: bool = False
    ) -> None:
        """Headers and body, or only the first half of it."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            self.reset()

    def reset(self) -> None:
        """An RST instead of an answer."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A running proxy, harmless until it gets a plan."""
    server = Proxy(target)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def all_at(rate: float) -> dict[str, float]:
    """Every kind of fault, each at `rate`."""
    return dict.fromkeys(KINDS, rate)
