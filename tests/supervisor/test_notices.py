"""Alerts of `ckptstore run`, as a command and a server get them, about real commands."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from supervised import COMMAND, Ran, steps

INTO_FILE = "cat >> alerts; echo >> alerts"


def alerts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alerts").read_text().splitlines() if line]


def test_a_crash_and_the_end_are_told(tmp_path: Path) -> None:
    ran = steps(tmp_path, "save,kill 9", "save,exit 75", "exit 0", options=("--alert-command", INTO_FILE))
    assert (ran.code, ran.starts) == (0, 3)
    assert "left processes behind" not in ran.err
    crash, finish = alerts(tmp_path)
    assert (crash["kind"], crash["reason"], crash["version"], crash["detail"]["exit_code"]) == (
        "crash",
        "killed",
        1,
        -9,
    )
    assert crash["store"] == str(tmp_path / "store")
    assert crash["text"].startswith(
        "store: the command was killed by SIGKILL; start 2 resumes from version 1: "
    )
    assert (finish["kind"], finish["detail"]) == ("finish", {"stopped": None, "restarts": 2})


def test_giving_up_is_told_with_its_reason(tmp_path: Path) -> None:
    options = ("--alert-command", INTO_FILE, "--max-without-progress", 2)
    options += ("--alert-on", "no_progress", "--alert-on", "restart")
    ran = steps(tmp_path, "save,kill 9", "kill 9", options=options)
    assert ran.code != 0
    found = alerts(tmp_path)
    assert [one["kind"] for one in found] == ["restart", "no_progress"]
    assert "not restarted:" in found[1]["text"]


def test_a_webhook_gets_it_and_one_that_fails_touches_nothing(tmp_path: Path) -> None:
    bodies: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(404 if self.path == "/gone/secret" else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for path in ("/hook/secret", "/gone/secret"):
            (tmp_path / "starts").unlink(missing_ok=True)
            ran = steps(tmp_path, "save,exit 0", options=("--alert-url", address + path))
            assert ran.code == 0
            assert "secret" not in ran.err
        server.shutdown()
    assert [body["kind"] for body in bodies] == ["finish", "finish"]
    assert bodies[0]["content"] == bodies[0]["text"]
    assert ran.err == f"ckptstore: the alert 'finish' was not sent to {address}/...: it answered 404\n"


@pytest.mark.parametrize("options", [("--alert-url", "ftp://x/secret"), ("--alert-on", "crashes")])
def test_options_that_cannot_be_used_start_nothing(tmp_path: Path, options: tuple[str, str]) -> None:
    ran = Ran(tmp_path, "store", *options, "--", sys.executable, "-c", COMMAND, "exit 0")
    assert (ran.code, ran.starts) == (2, 0)
    assert "secret" not in ran.err
    assert not list(tmp_path.iterdir())


def test_metrics_are_written_to_the_end(tmp_path: Path) -> None:
    ran = steps(tmp_path, "save 1,kill 9", "save 1,exit 0", options=("--metrics-file", "digits.prom"))
    assert (ran.code, ran.starts) == (0, 2)
    text = (tmp_path / "digits.prom").read_text()
    assert f'ckptstore_run_checkpoints{{store="{tmp_path}/store",run="1"}} 2\n' in text
    assert f'ckptstore_up{{store="{tmp_path}/store"}} 1\n' in text
