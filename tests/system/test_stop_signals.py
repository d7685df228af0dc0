"""Stop requests by signal, in real processes with real signals: recorded, delivered, and passed on to old handlers."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

import ckptstore
from ckptstore.errors import InvalidArgumentError
from ckptstore.system.stop_signals import StopRequest, TrainingInterrupted

SIGNALS = ["SIGTERM", "SIGUSR1", "SIGINT"]
ENDED = {
    "SIGTERM": "TrainingInterrupted 75",
    "SIGUSR1": "TrainingInterrupted 75",
    "SIGINT": "KeyboardInterrupt",
}

# `sig` is the signal of the test, `other` another one; `send` delivers a real signal to this thread.
PRELUDE = """
import gc, os, signal, sys, threading
from ckptstore.system.stop_signals import StopRequest, TrainingInterrupted
sig, other = signal.{sig}, signal.{other}
send = signal.raise_signal

def echo(*what):
    print(*what, flush=True)

def old_handler(number, frame):
    echo("old", signal.Signals(number).name, frame is not None)

def deliver(stop):
    try:
        stop.deliver()
    except KeyboardInterrupt:
        echo("KeyboardInterrupt")
    except TrainingInterrupted as error:
        echo("TrainingInterrupted", error.code)
"""
OTHER = {"SIGTERM": "SIGUSR1", "SIGUSR1": "SIGINT", "SIGINT": "SIGTERM"}


class Ran:
    """A script that has run: its output, and its exit code."""

    def __init__(self, script: str, sig: str = "SIGTERM", *, first: str = "") -> None:
        prelude = first + PRELUDE.format(sig=sig, other=OTHER[sig])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", prelude + textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.code = done.returncode
        self.lines = done.stdout.splitlines()
        self.err = done.stderr

    def ended_by(self, name: str) -> bool:
        """Return True if the signal ended it as if there had been no stop request."""
        if name == "SIGINT":
            return self.err.rstrip().endswith("KeyboardInterrupt")
        return self.code == -getattr(signal, name)


each = pytest.mark.parametrize("sig", SIGNALS)


# --- one request ---------------------------------------------------------------------------------


@each
def test_a_signal_is_recorded_and_takes_effect_on_delivery(sig: str) -> None:
    ran = Ran(
        """
        stop = StopRequest()
        assert stop.received is None and not stop.installed
        stop.deliver()
        stop.install()
        assert stop.installed
        send(sig)
        echo(stop.received.name)
        deliver(stop)
        echo(stop.received)
        stop.deliver()
        """,
        sig,
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [sig, ENDED[sig], "None"]


@pytest.mark.parametrize(("sig", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", -signal.SIGINT)])
def test_a_script_that_does_not_catch_it_ends_with_its_code_after_finally(sig: str, code: int) -> None:
    ran = Ran(
        """
        try:
            with StopRequest() as stop:
                send(sig)
                stop.deliver()
        finally:
            echo("finally")
        """,
        sig,
    )
    assert (ran.code, ran.lines) == (code, ["finally"])
    assert (ran.err == "") == (sig != "SIGINT")


def test_the_exit_code_can_be_chosen() -> None:
    ran = Ran("with StopRequest(exit_code=3) as stop:\n    send(sig)\n    stop.deliver()")
    assert ran.code == 3


def test_a_signal_from_another_process_is_received() -> None:
    script = """
    import time
    with StopRequest() as stop:
        echo("ready")
        while stop.received is None:
            time.sleep(0.01)  # not pause(), which would sleep on after a signal that came just before
        stop.deliver()
    """
    program = PRELUDE.format(sig="SIGTERM", other="SIGINT") + textwrap.dedent(script)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.terminate()
        assert child.wait(timeout=60) == 75


@each
def test_a_second_signal_stops_at_once(sig: str) -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        send(other)
        echo(stop.received.name)
        send(sig)
        echo("not reached")
        """,
        sig,
    )
    assert ran.lines == [OTHER[sig]]
    assert ran.ended_by(sig)


def test_ctrl_c_twice_stops_at_once_and_restores_the_old_handlers() -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        send(sig)
        try:
            send(sig)
        except KeyboardInterrupt:
            echo("interrupted", stop.installed, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
        stop.install()
        echo(stop.received)
        """,
        "SIGINT",
    )
    assert ran.lines == ["interrupted False True", "None"]


@pytest.mark.parametrize("sig", ["SIGTERM", "SIGUSR1"])
def test_the_same_signal_twice_within_an_instant_is_one_request(sig: str) -> None:
    ran = Ran(
        """
        import time
        from ckptstore.system import signal_handlers
        now = time.monotonic()
        signal_handlers.time.monotonic = lambda: now
        with StopRequest() as stop:
            send(sig)
            send(sig)
            echo(stop.received.name)
            signal_handlers.time.monotonic = lambda: now + 4
            send(sig)
        """,
        sig,
    )
    assert ran.lines == [sig]
    assert ran.code == -getattr(signal, sig)


# --- old handlers --------------------------------------------------------------------------------


@each
def test_an_old_handler_is_called_when_the_signal_is_delivered(sig: str) -> None:
    ran = Ran(
        """
        signal.signal(sig, old_handler)
        with StopRequest() as stop:
            send(sig)
            echo("recorded")
            deliver(stop)
        echo(signal.getsignal(sig) is old_handler)
        send(sig)
        """,
        sig,
    )
    assert ran.lines == ["recorded", f"old {sig} True", ENDED[sig], "True", f"old {sig} True"]


@each
def test_an_old_handler_receives_the_second_signal(sig: str) -> None:
    ran = Ran(
        """
        signal.signal(sig, old_handler)
        stop = StopRequest()
        stop.install()
        send(other)
        send(sig)
        echo(signal.getsignal(sig) is old_handler, stop.installed)
        """,
        sig,
    )
    assert ran.lines == [f"old {sig} True", "True False"]


@each
def test_a_signal_that_was_ignored_still_asks_for_a_stop(sig: str) -> None:
    ran = Ran(
        """
        signal.signal(sig, signal.SIG_IGN)
        with StopRequest() as stop:
            send(sig)
            deliver(stop)
        echo(signal.getsignal(sig) == signal.SIG_IGN)
        send(sig)
        echo("still here")
        """,
        sig,
    )
    assert ran.lines == [ENDED[sig], "True", "still here"]


@each
def test_uninstalling_puts_the_old_handlers_back(sig: str) -> None:
    ran = Ran(
        """
        before = [signal.getsignal(one) for one in (sig, other)]
        stop = StopRequest()
        for _ in range(2):
            stop.uninstall()
            stop.install()
            stop.install()
            assert [signal.getsignal(one) for one in (sig, other)] != before
            stop.uninstall()
            stop.uninstall()
            assert [signal.getsignal(one) for one in (sig, other)] == before
        echo(stop.installed)
        send(sig)
        """,
        sig,
    )
    assert ran.lines == ["False"]
    assert ran.ended_by(sig)


@each
def test_a_signal_at_the_last_moment_is_still_there_after_uninstalling(sig: str) -> None:
    ran = Ran(
        """
        signal.signal(sig, old_handler)
        with StopRequest() as stop:
            send(sig)
        echo(stop.received.name)
        deliver(stop)
        with stop:
            echo(stop.received)
        """,
        sig,
    )
    assert ran.lines == [sig, f"old {sig} True", ENDED[sig], "None"]


ON_TOP = """
def handler_on_top(number, frame):
    echo("on top")
    below(number, frame)
"""


@each
def test_a_handler_installed_on_top_of_ours_stays_and_calls_ours(sig: str) -> None:
    ran = Ran(
        ON_TOP
        + textwrap.dedent("""
        signal.signal(sig, old_handler)
        stop = StopRequest()
        stop.install()
        below = signal.signal(sig, handler_on_top)
        send(sig)
        echo(stop.received.name)
        deliver(stop)
        stop.uninstall()
        echo(signal.getsignal(sig) is handler_on_top)
        send(sig)
        """),
        sig,
    )
    assert ran.lines == ["on top", sig, f"old {sig} True", ENDED[sig], "True", "on top", f"old {sig} True"]


@each
def test_the_default_action_happens_through_a_handler_on_top(sig: str) -> None:
    ran = Ran(
        ON_TOP
        + textwrap.dedent("""
        stop = StopRequest()
        stop.install()
        below = signal.signal(sig, handler_on_top)
        stop.uninstall()
        send(sig)
        echo("not reached")
        """),
        sig,
    )
    assert ran.lines == ["on top"]
    assert ran.ended_by(sig)


def test_a_second_signal_through_a_handler_on_top_reaches_the_old_handler_once() -> None:
    ran = Ran(
        ON_TOP
        + textwrap.dedent("""
        signal.signal(sig, old_handler)
        stop = StopRequest()
        stop.install()
        below = signal.signal(sig, handler_on_top)
        send(other)
        send(sig)
        """)
    )
    assert ran.lines == ["on top", "old SIGTERM True"]


def test_a_new_request_over_a_handler_that_calls_an_uninstalled_one() -> None:
    ran = Ran(
        ON_TOP
        + textwrap.dedent("""
        signal.signal(sig, old_handler)
        first = StopRequest()
        first.install()
        below = signal.signal(sig, handler_on_top)
        first.uninstall()
        with StopRequest() as stop:
            send(sig)
            echo(stop.received.name)
            deliver(stop)
        """)
    )
    assert ran.lines == ["SIGTERM", "on top", "old SIGTERM True", "TrainingInterrupted 75"]


OVER = """
def handler_over(number, frame):
    echo("over", frame is not None)
    {calls}
"""
each_over = pytest.mark.parametrize("calls", ["pass", "below(number, frame)"], ids=["replaces", "calls ours"])


@each_over
def test_a_new_request_gets_its_signals_though_the_program_has_put_a_handler_over_another(calls: str) -> None:
    ran = Ran(
        OVER.format(calls=calls)
        + textwrap.dedent("""
        signal.signal(sig, old_handler)
        # Of a loop that an exception has ended, and whose callback lives.
        abandoned = StopRequest()
        abandoned.install()
        below, for_other = signal.signal(sig, handler_over), signal.getsignal(other)
        for _ in range(2):
            with StopRequest() as stop:
                send(sig)
                echo(stop.received.name)
                deliver(stop)
            echo(signal.getsignal(sig) is handler_over, signal.getsignal(other) == for_other)
        with StopRequest() as stop:
            send(sig)
            send(other)
        """)
    )
    over = ["over True"]
    assert ran.lines == ["SIGTERM", *over, ENDED["SIGTERM"], "True True"] * 2
    # A second signal ends the process at once, also where the other request would only note it.
    assert ran.ended_by("SIGUSR1")


def test_a_fit_that_has_ended_unnoticed_is_no_longer_asked() -> None:
    ran = Ran(
        """
        abandoned = StopRequest()
        abandoned.is_polled = lambda frame: False
        abandoned.install()
        signal.signal(sig, old_handler)
        with StopRequest() as stop:
            echo(abandoned.installed)
            send(sig)
            echo(stop.received.name, abandoned.received)
            deliver(stop)
        echo(signal.getsignal(sig) is old_handler, signal.getsignal(other) == signal.SIG_DFL)
        """
    )
    assert ran.lines == ["False", "SIGTERM None", "old SIGTERM True", ENDED["SIGTERM"], "True True"]


def test_requests_below_and_over_a_handler_of_the_program_see_one_signal() -> None:
    ran = Ran(
        OVER.format(calls="below(number, frame)")
        + textwrap.dedent("""
        outer, inner = StopRequest(), StopRequest()
        outer.install()
        below = signal.signal(sig, handler_over)
        inner.install()
        send(sig)
        echo(inner.received.name, outer.received)
        with StopRequest() as latest:
            echo(latest.received.name)
        deliver(inner)
        inner.uninstall()
        echo(outer.received.name)
        child = os.fork()
        if child == 0:
            send(sig)
        echo(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        deliver(outer)
        outer.uninstall()
        echo(signal.getsignal(sig) is handler_over, signal.getsignal(other) == signal.SIG_DFL)
        """)
    )
    assert ran.lines == [
        *["SIGTERM None", "SIGTERM", "over True", ENDED["SIGTERM"], "SIGTERM"],
        *["over True", str(-signal.SIGTERM), ENDED["SIGTERM"], "True True"],
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists handlers from outside Python")
def test_a_handler_from_outside_python_is_left_alone() -> None:
    ran = Ran(
        """
        import faulthandler
        faulthandler.register(signal.SIGUSR1, chain=False)
        with StopRequest() as stop:
            echo(*[one.name for one in stop.skipped], stop.installed)
            send(signal.SIGUSR1)
            echo(stop.received)
            send(signal.SIGTERM)
            echo(stop.received.name)
        """
    )
    assert ran.lines == ["SIGUSR1 True", "None", "SIGTERM"]
    assert "most recent call first" in ran.err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists handlers from outside Python")
def test_a_handler_from_outside_python_is_taken_over_and_put_back() -> None:
    ran = Ran(
        """
        import faulthandler
        faulthandler.register(signal.SIGUSR1, chain=False)
        with StopRequest(takes_over=[signal.SIGUSR1]) as stop:
            echo(*[one.name for one in stop.skipped], stop.installed)
            send(signal.SIGUSR1)
            echo(stop.received.name)
            deliver(stop)
        echo("behind")
        send(signal.SIGUSR1)
        stop = StopRequest(takes_over=[signal.SIGUSR1])
        stop.install()
        stop.is_polled = lambda frame: False
        send(signal.SIGUSR1)
        echo(stop.received)
        """
    )
    assert ran.lines == ["True", "SIGUSR1", "TrainingInterrupted 75", "behind", "None"]
    # Once behind the first request, and once when nobody polled.
    assert ran.err.count("most recent call first") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists handlers from outside Python")
def test_a_second_signal_ends_the_process_whose_handler_was_taken_over() -> None:
    program = """
        import faulthandler
        faulthandler.register(signal.SIGUSR1, chain=False)
        stop = StopRequest(takes_over=[signal.SIGUSR1])
        stop.install()
        send(signal.SIGUSR1)
        import ckptstore.system.signal_handlers as handlers
        handlers.SharedHandlers.current._received_at -= 60
        echo("once")
        send(signal.SIGUSR1)
        echo("twice")
        """
    ran = Ran(program)
    assert ran.lines == ["once"]
    assert ran.code == -signal.SIGUSR1


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    known = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else known(number)
    )
    with StopRequest([signal.SIGUSR1]) as stop:
        assert stop.skipped == (signal.SIGUSR1,)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


# --- several requests ----------------------------------------------------------------------------


@each
def test_nested_requests_share_handlers_and_each_sees_the_signal(sig: str) -> None:
    ran = Ran(
        """
        signal.signal(sig, old_handler)
        outer, inner = StopRequest(), StopRequest()
        outer.install()
        handler = signal.getsignal(sig)
        inner.install()
        assert signal.getsignal(sig) == handler
        send(sig)
        echo(outer.received.name, inner.received.name)
        deliver(inner)
        inner.uninstall()
        assert signal.getsignal(sig) == handler
        echo(inner.received, outer.received.name)
        deliver(outer)
        outer.uninstall()
        echo(signal.getsignal(sig) is old_handler)
        """,
        sig,
    )
    assert ran.lines == [f"{sig} {sig}", f"old {sig} True", ENDED[sig], f"None {sig}", ENDED[sig], "True"]


@each
def test_a_request_installed_after_the_signal_sees_it(sig: str) -> None:
    ran = Ran(
        "with StopRequest():\n    send(sig)\n    with StopRequest() as inner:\n        echo(inner.received.name)",
        sig,
    )
    assert ran.lines == [sig]


def test_each_request_receives_only_its_own_signals() -> None:
    ran = Ran(
        """
        one = StopRequest([sig])
        two = StopRequest([sig, other])
        one.install()
        two.install()
        send(other)
        echo(one.received, two.received.name)
        two.uninstall()
        echo(signal.getsignal(other) == signal.SIG_DFL, signal.getsignal(sig) == signal.SIG_DFL)
        two.install()
        echo(signal.getsignal(other) == signal.SIG_DFL)
        """
    )
    assert ran.lines == ["None SIGUSR1", "True False", "False"]


@each
def test_a_collected_request_swallows_no_signal(sig: str) -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        del stop
        gc.collect()
        send(sig)
        echo("not reached")
        """,
        sig,
    )
    assert ran.lines == []
    assert ran.ended_by(sig)


def test_a_new_request_after_a_collected_one_has_the_original_handler() -> None:
    ran = Ran(
        """
        StopRequest().install()
        gc.collect()
        with StopRequest() as stop:
            send(sig)
            deliver(stop)
        echo(signal.getsignal(sig) == signal.SIG_DFL)
        """
    )
    assert ran.lines == ["TrainingInterrupted 75", "True"]


# --- threads, interpreters and forks -------------------------------------------------------------


def test_in_another_thread_nothing_is_installed() -> None:
    found: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            found.extend([stop.installed, stop.received, signal.getsignal(signal.SIGTERM)])

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, None, before]


@each
def test_uninstalled_in_another_thread_it_steps_aside_at_the_next_signal(sig: str) -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        thread = threading.Thread(target=stop.uninstall)
        thread.start()
        thread.join()
        echo(stop.installed)
        send(sig)
        echo("not reached")
        """,
        sig,
    )
    assert ran.lines == ["False"]
    assert ran.ended_by(sig)


def test_in_another_interpreter_nothing_is_installed() -> None:
    pytest.importorskip("_xxsubinterpreters")
    ran = Ran(
        """
        import _xxsubinterpreters as interpreters
        interpreters.run_string(interpreters.create(), '''if True:
            from ckptstore.system.stop_signals import StopRequest
            with StopRequest() as stop:
                print(stop.installed, stop.received, flush=True)
        ''')
        """
    )
    assert ran.lines == ["False None"], ran.err


@each
def test_a_forked_child_ends_as_it_would_have(sig: str) -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        child = os.fork()
        if child == 0:
            try:
                assert not stop.installed
                assert signal.getsignal(sig) in (signal.SIG_DFL, signal.default_int_handler)
                send(sig)
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(0)
        echo(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        echo(stop.installed, stop.received)
        send(sig)
        echo(stop.received.name)
        """,
        sig,
    )
    assert ran.lines == [str(130 if sig == "SIGINT" else -getattr(signal, sig)), "True None", sig]


@each
def test_a_child_forked_by_c_code_ends_on_a_signal(sig: str) -> None:
    ran = Ran(
        """
        import ctypes
        stop = StopRequest()
        stop.install()
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            try:
                send(sig)
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(0)
        echo(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        sig,
    )
    assert ran.lines == [str(130 if sig == "SIGINT" else -getattr(signal, sig))]


@each
def test_a_signal_is_blocked_until_the_child_is_ready(sig: str) -> None:
    """Python loses signals that reach a child before it has run its own part of the fork."""
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        echo(sig in masks[0], sig in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        """,
        sig,
        # Hooks before a fork run in reverse order: this one runs after ours.
        first="import os, signal\nmasks = []\n"
        "os.register_at_fork(before=lambda: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])))\n",
    )
    assert ran.lines == ["True False"]


def test_workers_of_multiprocessing_can_be_terminated() -> None:
    ran = Ran(
        """
        import multiprocessing, time
        context = multiprocessing.get_context("fork")
        stop = StopRequest()
        stop.install()
        worker = context.Process(target=time.sleep, args=(60,))
        worker.start()
        worker.terminate()
        worker.join(30)
        echo(worker.exitcode, stop.received)
        """
    )
    assert ran.lines == [f"{-signal.SIGTERM} None"]


def test_a_forked_child_may_install_a_request_of_its_own() -> None:
    ran = Ran(
        """
        stop = StopRequest()
        stop.install()
        send(sig)
        child = os.fork()
        if child == 0:
            with StopRequest() as own:
                echo(own.received)
                send(other)
                echo(own.received.name)
            echo(signal.getsignal(sig) == signal.SIG_DFL)
            os._exit(0)
        os.waitpid(child, 0)
        """
    )
    assert ran.lines == ["None", "SIGUSR1", "True"]


def test_unknown_signals_are_left_out_and_impossible_ones_refused() -> None:
    stop = StopRequest([signal.SIGTERM, 999])  # type: ignore[list-item]
    assert stop.signals == (signal.SIGTERM,)
    with pytest.raises(InvalidArgumentError, match="signals='SIGKILL': no process can handle it"):
        StopRequest([signal.SIGKILL])


# --- the exception -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [75, 3])
def test_the_exception_says_what_happened_and_pickles(code: int) -> None:
    error = ckptstore.TrainingInterrupted(signal.SIGUSR1, exit_code=code)
    assert isinstance(error, SystemExit) and not isinstance(error, Exception)
    twin = pickle.loads(pickle.dumps(error))
    for copy in (error, twin):
        assert type(copy) is TrainingInterrupted
        assert (copy.code, copy.signal, str(copy)) == (code, signal.SIGUSR1, copy.message)
        assert copy.message.startswith("stopped by SIGUSR1; ") and "\n" not in copy.message
