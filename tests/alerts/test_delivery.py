"""Deliveries to real servers and commands: those that take it, and those that hang, fail, move or close."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ckptstore.alerts.alert import Alert, body_for
from ckptstore.alerts.delivery import Failure, deliver, end_commands, post, run_command

ALERT = Alert(kind="crash", store="/runs/digits", run="digits", text="digits was killed", step=7).to_json()
SECRET = "T00SECRET"


class Server:
    """A server of this process that answers as it is told, and keeps what it got."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], object]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.methods: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                outer.bodies.append(json.loads(body))
                outer.methods.append(self.command)
                answer(self)

            def do_GET(self) -> None:
                outer.methods.append(self.command)
                self.send_error(404)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}?key={SECRET}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def answering(code: int, **headers: str) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[http.server.BaseHTTPRequestHandler], object]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_server_gets_the_alert_as_json(serve: Callable[..., Server]) -> None:
    server = serve(answering(204))
    assert deliver(ALERT, url=server.url, command=None, pause=pytest.fail) == []
    assert server.bodies == [{**ALERT, "content": "digits was killed"}]
    assert server.bodies[0]["text"] == "digits was killed"


def test_slack_and_discord_get_their_own_fields_alone() -> None:
    assert body_for("https://hooks.slack.com/services/T/B/X", ALERT) == {"text": "digits was killed"}
    for url in ("https://discord.com/api/webhooks/1/x", "https://discordapp.com/api/webhooks/1/x"):
        body = body_for(url, {**ALERT, "text": "@everyone " * 500})
        assert body.pop("allowed_mentions") == {"parse": []}
        assert len(body.pop("content")) <= 2000
        assert body == {}
    assert body_for("https://discord.com.example.org/x", ALERT)["kind"] == "crash"


@pytest.mark.parametrize(
    ("code", "tries", "said"),
    [(500, 3, "it answered 500"), (429, 3, "it answered 429"), (404, 1, "it answered 404")],
)
def test_a_server_that_fails_is_asked_again_where_that_may_help(
    serve: Callable[..., Server], code: int, tries: int, said: str
) -> None:
    server = serve(answering(code))
    pauses: list[float] = []
    (line,) = deliver(ALERT, url=server.url, command=None, pause=pauses.append)
    assert line == f"the alert 'crash' was not sent to {server.url.split('/T00')[0]}/...: {said}"
    assert len(server.bodies) == tries
    assert pauses == [1.0, 4.0][: tries - 1]


def test_a_redirect_is_named_and_not_followed(serve: Callable[..., Server]) -> None:
    target = serve(answering(200))
    server = serve(answering(301, Location=target.url))
    (line,) = deliver(ALERT, url=server.url, command=None, pause=pytest.fail)
    assert "it answered 301 (it has moved: give its new address)" in line
    assert SECRET not in line
    assert target.methods == []


def test_a_server_that_hangs_or_drips_is_left_in_time(serve: Callable[..., Server]) -> None:
    done = threading.Event()

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.flush_headers()
        with suppress(OSError):
            while not done.wait(0.02):
                request.wfile.write(b"X-Wait: 1\r\n")

    for answer in (lambda _: done.wait(20), drip):
        began = time.monotonic()
        failure = post(serve(answer).url, ALERT, timeout_s=0.3)
        assert failure is not None
        assert failure.reason in ("no answer within 0.3 s", "no answer in time")
        assert time.monotonic() - began < 5
    done.set()


def test_a_server_that_closes_or_is_not_there(serve: Callable[..., Server]) -> None:
    server = serve(lambda request: request.connection.shutdown(socket.SHUT_RDWR))
    failure = post(server.url, ALERT)
    assert failure is not None
    assert not failure.is_final
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    failure = post(f"http://127.0.0.1:{port}/{SECRET}", ALERT)
    assert failure == Failure("ConnectionRefusedError: Connection refused")


def test_no_line_shows_a_secret(serve: Callable[..., Server]) -> None:
    for url in (
        f"http://me:{SECRET}@127.0.0.1:1/{SECRET}",
        f"http://127.0.0.1:1/{SECRET}\n",
        f"ftp://x/{SECRET}",
    ):
        (line,) = deliver(ALERT, url=url, command=None, pause=lambda _: None)
        assert SECRET not in line


def test_a_command_gets_the_json_and_the_sentence(tmp_path: Path) -> None:
    command = f'cat > {tmp_path}/json; echo "$CKPTSTORE_ALERT" > {tmp_path}/text'
    assert run_command(command, ALERT) is None
    assert json.loads((tmp_path / "json").read_text()) == ALERT
    assert (tmp_path / "text").read_text() == "digits was killed\n"
    # One that reads nothing is fine, too.
    assert run_command("exec true", ALERT) is None


def test_a_command_that_fails_or_hangs_is_said(tmp_path: Path) -> None:
    (line,) = deliver(ALERT, url=None, command="exit 3", pause=lambda _: None)
    assert line == "the alert 'crash' was not sent to the alert command: it ended with exit code 3"
    pauses: list[float] = []
    deliver(ALERT, url=None, command=f"echo x >> {tmp_path}/tries; exit 1", pause=pauses.append)
    assert (tmp_path / "tries").read_text() == "x\n" * 3
    assert deliver(ALERT, url=None, command="no-such-command-here", pause=pytest.fail)
    # With its children, one of which ignores signals.
    hangs = f"sh -c 'trap \"\" TERM; echo $$ > {tmp_path}/pid; sleep 60' & wait"
    began = time.monotonic()
    assert run_command(hangs, ALERT, timeout_s=1.0) == Failure(
        "it did not end within 1 s, and was killed", is_final=True
    )
    assert time.monotonic() - began < 5
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        for _ in range(500):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                raise ProcessLookupError
            os.kill(pid, 0)
            time.sleep(0.01)


def test_a_command_does_not_outlive_the_process_that_sends(tmp_path: Path) -> None:
    found: list[Failure | None] = []
    thread = threading.Thread(
        target=lambda: found.append(run_command(f"touch {tmp_path}/up; sleep 60", ALERT))
    )
    thread.start()
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    end_commands()
    thread.join(10)
    assert found == [Failure("it ended with exit code -9")]
