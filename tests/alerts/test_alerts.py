"""Alerts leave this process at once, whatever becomes of them; each kind once within an hour."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptstore.alerts import alerts as alerts_module
from ckptstore.alerts.alert import ALERT_KINDS, Alert, AlertKind
from ckptstore.alerts.alerts import Alerts
from ckptstore.errors import InvalidArgumentError
from ckptstore.system.processes import process_state


def alert(kind: AlertKind = "crash", run: str | None = "digits", **facts: object) -> Alert:
    return Alert(kind=kind, store="/runs/digits", run=run, text=f"{run}: {kind}", **facts)  # type: ignore[arg-type]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def into(tmp_path: Path, said: list[str]) -> Iterator[Alerts]:
    """Return alerts that a command writes into a file."""
    made = Alerts(command=f"cat >> {tmp_path}/sent; echo >> {tmp_path}/sent", log=said.append)
    yield made
    made.close(20)


def sent(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "sent").read_text().splitlines() if line]


def test_alerts_arrive_in_order_and_each_kind_once_an_hour(
    tmp_path: Path, into: Alerts, said: list[str]
) -> None:
    for _ in range(3):
        into.send(alert("crash", step=7, detail={"signal": "SIGKILL"}))
    into.send(alert("restart"))
    into.send(alert("crash", run="other"))
    into.close(20)
    assert said == []
    found = sent(tmp_path)
    assert [(one["kind"], one["run"]) for one in found] == [
        ("crash", "digits"),
        ("restart", "digits"),
        ("crash", "other"),
    ]
    assert found[0] == {
        "kind": "crash", "store": "/runs/digits", "run": "digits", "text": "digits: crash", "at": found[0]["at"],
        "host": os.uname().nodename, "attempt": None, "reason": None, "step": 7, "epoch": None, "version": None,
        "repeated": 0, "detail": {"signal": "SIGKILL"},
    }  # fmt: skip


def test_one_that_hangs_keeps_nobody_waiting(tmp_path: Path, said: list[str]) -> None:
    alerts = Alerts(
        command=f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 60", log=said.append
    )
    began = time.monotonic()
    for number in range(300):
        alerts.send(alert(run=f"run-{number}", detail={"much": "x" * 3000}))
    # Starting the process is what takes this long; a pipe that is full is said.
    assert time.monotonic() - began < 5
    assert set(said) == {"the alert 'crash' is left out: too many others wait to be sent"}
    pid = alerts.pid
    while not (tmp_path / "pid").exists() and time.monotonic() - began < 30:
        time.sleep(0.02)
    command = int((tmp_path / "pid").read_text())
    alerts.close(0.2)
    assert said[-1] == "alerts are given up: they were not sent within 0.2 s"
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    until = time.monotonic() + 20
    while process_state(command, None) != "gone":
        assert time.monotonic() < until, "its command is left behind"
        time.sleep(0.01)


def test_a_process_that_is_killed_is_started_again(tmp_path: Path, into: Alerts, said: list[str]) -> None:
    into.send(alert("restart"))
    first = into.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    into.send(alert("hang"))
    assert into.pid not in (None, first)
    into.close(20)
    assert [one["kind"] for one in sent(tmp_path)] == ["hang"]
    assert said == []


def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Alerts that were sent still arrive, though the process that sent them is killed."""
    script = f"""
import os, signal
from ckptstore.alerts.alert import Alert
from ckptstore.alerts.alerts import Alerts
alerts = Alerts(command="cat >> {tmp_path}/sent; echo >> {tmp_path}/sent", log=print)
alerts.send(Alert(kind="crash", store="/runs", text="killed"))
print(alerts.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    until = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    assert [one["text"] for one in sent(tmp_path)] == ["killed"]


def test_kinds_that_nobody_wants_start_nothing(tmp_path: Path, said: list[str]) -> None:
    alerts = Alerts(command="true", kinds=["hang"], log=said.append)
    alerts.send(alert("crash"))
    assert alerts.pid is None
    Alerts(log=said.append).send(alert())
    alerts.close(1)
    with pytest.raises(InvalidArgumentError, match="crash, restart, hang"):
        Alerts(command="true", kinds=["crashes"], log=said.append)
    assert set(ALERT_KINDS) == {
        "crash", "restart", "hang", "no_progress", "rollback", "finish", "stopped", "disk_low"
    }  # fmt: skip


@pytest.mark.parametrize(
    "url", ["", "hook.example.org", "ftp://x/secret", "https://", "http://h:x/secret", "https://h/a b"]
)
def test_an_address_that_is_none_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="must begin with https://") as caught:
        Alerts(url=url, log=print)
    assert "secret" not in str(caught.value)


def test_the_address_is_in_no_argument(said: list[str]) -> None:
    alerts = Alerts(url="http://127.0.0.1:1/secret", log=said.append)
    alerts.send(alert())
    assert b"secret" not in Path(f"/proc/{alerts.pid}/cmdline").read_bytes()
    assert b"secret" not in Path(f"/proc/{alerts.pid}/environ").read_bytes()
    alerts.close(0)


def test_a_long_alert_is_shortened_to_what_a_pipe_takes_at_once() -> None:
    whole = alert(detail={"output": ["x" * 9000]}).to_json()
    assert json.loads(alerts_module._line(whole)) == {**whole, "detail": {}}
    for character in ("t", "\N{GRINNING FACE}"):
        long = Alert(kind="crash", store=f"/{character}" * 4000, text=character * 9000).to_json()
        line = alerts_module._line(long)
        assert 1000 < len(line) <= alerts_module._MAX_LINE
        assert json.loads(line)["text"].startswith(character * 50)
