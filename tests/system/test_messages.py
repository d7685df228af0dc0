"""A message raises nothing, whatever the stream is; a warning that a filter makes an exception waits for the work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptstore.system import messages


def closed() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


def without_reader() -> Any:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full() -> Any:
    return Path("/dev/full").open("w", encoding="utf-8")


def of_closed_descriptor() -> Any:
    stream = os.fdopen(os.dup(1), "w")
    os.close(stream.fileno())
    return stream


class Broken:
    def write(self, text: str) -> None:
        raise ZeroDivisionError

    def flush(self) -> None:
        raise ZeroDivisionError


def write_to_stdout(text: str) -> None:
    sys.stdout.write(text)


def show_on_stderr(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(str(message))
    sys.stderr.flush()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "make", [closed, without_reader, full, of_closed_descriptor, Broken, lambda: None, object]
)
def test_a_stream_that_cannot_be_written_loses_the_message_and_raises_nothing(
    make: Callable[[], Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make()
    with monkeypatch.context() as changed:
        changed.setattr(sys, name, stream)
        messages.log("a line")
        messages.print_by(print, "a line")
        messages.print_by(write_to_stdout, "a line")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            changed.setattr(warnings, "showwarning", show_on_stderr)
            messages.warn("a warning")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_characters_that_a_stream_cannot_encode_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is not ASCII in the C locale, and a path that is not text."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    messages.log("run 'größe' \udcff")
    messages.print_by(lambda text: stream.write(f"{text}\n"), "run 'größe' \udcff")
    stream.flush()
    expected = {
        "ascii": r"run 'gr\xf6\xdfe' \udcff",
        "utf-8": r"run 'größe' \udcff",
        "latin-1": r"run 'größe' \udcff",
    }
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert written.splitlines() == [expected[encoding]] * 2


def test_a_pipe_that_nobody_reads_costs_one_wait_and_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    monkeypatch.setattr(messages, "BLOCKED_AFTER_S", 0.05)
    with os.fdopen(writer, "w") as stream, monkeypatch.context() as changed:
        changed.setattr(sys, "stderr", stream)
        began = time.monotonic()
        for _ in range(50):
            messages.log("lost" * 1000)
            messages.warn("lost")
        waited = time.monotonic() - began
        received = bytearray()
        while len(received) < 65536:
            received += os.read(reader, 65536)
        messages.log("a line")
        assert os.read(reader, 100) == b"a line\n"
    os.close(reader)
    assert waited < 2.0  # and not 100 * 0.05 seconds
    assert not received.strip(b"\0")


def test_a_patched_print_is_not_used_for_messages_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("only rank 0 prints")

    monkeypatch.setattr("builtins.print", failing)
    messages.log("a line")
    messages.print_by(failing, "lost")
    assert capsys.readouterr() == ("", "a line\n")


def test_a_replaced_showwarning_that_fails_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", failing)
        messages.warn("a warning")


# --- warnings that are errors ------------------------------------------------------------------------


def test_a_warning_is_raised_after_the_work_and_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="first"), messages.held_back():
            messages.warn("first")
            with messages.held_back():
                messages.warn("second", RuntimeWarning)
            done.append("work")
    assert done == ["work"]
    assert capsys.readouterr().err == "RuntimeWarning: second\n"


@pytest.mark.parametrize("may_raise", [True, False])
def test_a_warning_replaces_neither_an_error_nor_a_decided_exit_code(
    may_raise: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ZeroDivisionError), messages.held_back(may_raise=may_raise):
            messages.warn("a warning")
            raise ZeroDivisionError
        with messages.held_back(may_raise=False):
            messages.warn("another")
    assert capsys.readouterr().err == "UserWarning: a warning\nUserWarning: another\n"


def test_each_thread_holds_back_its_own_warnings() -> None:
    seen = []

    def other() -> None:
        with messages.collected() as found:
            messages.warn("of the thread")
        seen.extend(found)

    with messages.collected() as found:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        messages.warn("here", RuntimeWarning)
    assert seen == [messages.HeldWarning("of the thread", UserWarning)]
    assert found == [messages.HeldWarning("here", RuntimeWarning)]


# --- the exit code -----------------------------------------------------------------------------------

EXIT = """
import signal, sys
from ckptstore.system import messages
from ckptstore.system.stop_signals import StopRequest

sys.stdout.write("kept in the buffer")
{before}
sys.exit(75)
"""
STOPPED = """
stop = StopRequest(); stop.install(); signal.raise_signal(signal.SIGTERM); stop.uninstall(); stop.deliver()
"""


@pytest.mark.parametrize(
    ("before", "code"),
    [("", 120), ("messages.print_by(print, 'a line')", 75), (STOPPED, 75)],
    ids=["plain Python", "after a lost message", "stopped by a signal"],
)
def test_the_exit_code_is_not_replaced_where_stdout_has_no_reader(before: str, code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", EXIT.format(before=before)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered, check=False
        )
    finally:
        os.close(writer)
    assert done.returncode == code, done.stderr


def test_descriptors_of_the_standard_streams_are_not_given_to_files_of_a_store() -> None:
    script = textwrap.dedent("""
        import os, sys
        from ckptstore.system import standard_descriptors

        for descriptor in (0, 2):
            os.close(descriptor)
        standard_descriptors.occupy()
        standard_descriptors.occupy()
        names = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in range(3)]
        print(names[0], names[2], os.open("/", os.O_RDONLY) > 2)
        """)
    if not Path("/proc/self/fd").exists():
        pytest.skip("this platform has no /proc")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True
    )
    assert done.stdout == "/dev/null /dev/null True\n"
