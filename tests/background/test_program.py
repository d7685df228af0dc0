"""The worker starts as a program of its own, isolated from the script; where it cannot, training starts too.

Refusals are real: seccomp forbids the system call in the whole process.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from ckptstore import CheckpointStore
from ckptstore.background import program
from forbidden_calls import needs_the_number
from writer_processes import needs_process

pytestmark = needs_process

SAVE = """
import sys, warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    from crash.sample_stores import snapshot_of
    from ckptstore import CheckpointStore
    from ckptstore.commit.request import SaveRequest
    {before}
    with CheckpointStore(sys.argv[1]) as store:
        queue = store.open_save_queue("default")
        for epoch in range(3):
            queue.submit(snapshot_of(epoch), SaveRequest(run="default", epoch=epoch), droppable=False)
        queue.drain()
        process = queue.survives_trainer
        queue.close()
        errors = [outcome.error for outcome in queue.outcomes() if outcome.error is not None]
texts = (str(warning.message) for warning in warned)
print("process" if process else "thread", len(errors), *texts, sep="|")
"""


def run(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    environment.pop(program.WRITER_VARIABLE, None)
    environment |= {name: value for name, value in variables.items() if name == program.WRITER_VARIABLE}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def saved(folder: Path, before: str = "", *options: str, **variables: str) -> tuple[str, list[str]]:
    """Save three checkpoints in a process of its own; returns where, and the warnings."""
    done = run(
        sys.executable,
        *options,
        "-c",
        SAVE.format(before=before),
        folder / "store",
        folder=folder,
        **variables,
    )
    assert done.returncode == 0, done.stderr
    kind, errors, *warned = done.stdout.strip().split("|")
    assert errors == "0"
    with CheckpointStore(folder / "store", read_only=True) as store:
        assert [checkpoint.epoch for checkpoint in store.checkpoints()] == [0, 1, 2]
    return kind, warned


def recording_program(path: Path) -> Path:
    """Make an executable that records how often it is started."""
    path.write_text(f"#!/bin/sh\necho started >> {path}.log\nexit 3\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("sys.executable, sys.frozen = {application!r}, True", "a frozen application"),
        ("sys.executable, sys.frozen = {python!r}, 'macosx_app'", "a frozen application"),
        ("sys.executable = {application!r}", "CKPTSTORE_WRITER=process"),
        ("sys.executable = ''", "is not known"),
        ("sys.executable = None", "is not known"),
    ],
    ids=["frozen", "frozen beside an interpreter", "embedded", "empty", "none"],
)
def test_an_application_that_holds_python_is_never_started_again(
    before: str, reason: str, tmp_path: Path
) -> None:
    application = recording_program(tmp_path / "application")
    python = recording_program(tmp_path / "python3")
    kind, warned = saved(tmp_path, before.format(application=str(application), python=str(python)))
    assert kind == "thread"
    assert len(warned) == 1
    assert reason in warned[0]
    assert list(tmp_path.glob("*.log")) == []


def test_an_interpreter_of_another_name_is_started_if_the_user_says_so(tmp_path: Path) -> None:
    interpreter = tmp_path / "trainer-runtime"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    kind, warned = saved(tmp_path, f"sys.executable = {str(interpreter)!r}", CKPTSTORE_WRITER="process")
    assert (kind, warned) == ("process", [])


@needs_the_number
@pytest.mark.parametrize("call", ["memfd_create", "eventfd2", "pidfd_open", "socketpair"])
@pytest.mark.parametrize("errno", ["EPERM", "ENOSYS"])
def test_training_starts_with_a_thread_where_a_system_call_is_refused(
    call: str, errno: str, tmp_path: Path
) -> None:
    before = f"sys.path.append({str(Path(__file__).parents[1] / 'support')!r})\n"
    before += f"    import errno; from forbidden_calls import forbid; forbid({call!r}, errno.{errno})"
    kind, warned = saved(tmp_path, before)
    assert kind == "thread"
    assert len(warned) == 1, warned
    assert "no process could be started" in warned[0]


@needs_the_number
def test_a_thread_that_is_asked_for_needs_no_shared_memory_and_no_warning(tmp_path: Path) -> None:
    before = f"sys.path.append({str(Path(__file__).parents[1] / 'support')!r})\n"
    before += "    import errno; from forbidden_calls import forbid; forbid('memfd_create', errno.EPERM)"
    assert saved(tmp_path, before, CKPTSTORE_WRITER="thread") == ("thread", [])


@needs_the_number
def test_a_refused_nice_value_does_not_keep_the_process_from_saving(tmp_path: Path) -> None:
    """The filter is inherited by the worker process."""
    before = f"sys.path.append({str(Path(__file__).parents[1] / 'support')!r})\n"
    before += "    import errno; from forbidden_calls import forbid; forbid('setpriority', errno.EPERM)\n"
    before += "    forbid('sched_setscheduler', errno.EPERM)"
    assert saved(tmp_path, before) == ("process", [])


# --- isolated --------------------------------------------------------------------------------------


def test_nothing_beside_the_script_runs_in_the_worker(tmp_path: Path) -> None:
    """Neither ``sitecustomize`` nor a module with the name of one of Python's own; and no setting of Python applies."""
    for name in ("sitecustomize", "usercustomize", "pickle", "json", "select"):
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path)!r} + '/{name}.ran', 'a').write('ran')\nraise OSError\n"
        )
    before = f"sys.path.insert(0, {str(tmp_path)!r})"
    kind, warned = saved(
        tmp_path, before, "-P", PYTHONWARNINGS="error", PYTHONPROFILEIMPORTTIME="1", PYTHONINSPECT=""
    )
    assert (kind, warned) == ("process", [])
    assert list(tmp_path.glob("*.ran")) == []


def test_the_worker_finds_the_package_where_the_trainer_did(tmp_path: Path) -> None:
    """The script is an archive and adds every folder itself: there is neither PYTHONPATH nor a site-packages."""
    archive = tmp_path / "app.pyz"
    root = Path(program.__file__).parents[2]
    paths = [str(root), str(root / "tools"), *(entry for entry in sys.path if "site-packages" in entry)]
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("__main__.py", f"import sys\nsys.path += {paths!r}\n{SAVE.format(before='')}")
    done = run(sys.executable, "-I", "-S", archive.name, tmp_path / "store", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("|")[:2] == ["process", "0\n"], done.stdout


def test_relative_entries_and_an_empty_one_are_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    library = str(Path(textwrap.__file__).parent)
    monkeypatch.setattr(sys, "path", ["", "lib", str(tmp_path), library, "/somewhere"])
    path = program._import_path()
    assert path == [library, str(tmp_path), str(tmp_path / "lib"), "/somewhere"]
