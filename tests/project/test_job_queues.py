"""The examples for job queues and services are valid, and what they say of options and exit codes is true.

They are checked by the programs that read them where these are installed: bash, systemd, the schemas of Kubernetes, a
kernel of Jupyter. Slurm's commands are replaced.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ckptstore.cli.exit_codes import exit_code
from ckptstore.cli.main import commands
from ckptstore.errors import InvalidArgumentError, LockedError
from ckptstore.system.stop_signals import TRY_AGAIN
from page_examples import GUIDE, blocks

PAGES = {topic: (GUIDE / f"{topic}.md").read_text(encoding="utf-8") for topic in ("job-queues", "services")}
SLURM = [block.code for block in blocks(PAGES["job-queues"], "bash")]
JOB, HOOK = (yaml.safe_load(block.code) for block in blocks(PAGES["job-queues"], "yaml"))
[UNIT] = (block.code for block in blocks(PAGES["services"], "ini"))
[NOHUP] = (block.code for block in blocks(PAGES["services"], "bash"))
[CRONTAB] = (block.code for block in blocks(PAGES["services"], "cron"))
# The command of a shell that a program could not be found, or not be executed.
NOT_EXECUTABLE, NOT_FOUND = 126, 127


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    [container] = job["spec"]["template"]["spec"]["containers"]
    return container


def settings_of_unit() -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT)
    return {name: dict(parser[name]) for name in parser.sections()}


def lines_of_crontab() -> list[tuple[str, str]]:
    """Return when and what: cron's own fields, and the rest, which a shell reads."""
    found = [re.fullmatch(r"(@reboot|\S+(?: \S+){4}) +(.+)", line) for line in CRONTAB.splitlines()]
    assert all(found), CRONTAB
    return [(match[1], match[2]) for match in found if match]


def commands_shown() -> list[list[str]]:
    """Return the arguments of each `ckptstore run` in the examples."""
    scripts = [
        *SLURM,
        NOHUP,
        settings_of_unit()["Service"]["ExecStart"],
        *(line for _, line in lines_of_crontab()),
    ]
    found = [
        shlex.split(match[1])
        for script in scripts
        for match in re.finditer(r"ckptstore (run .*?)(?: >>.*| &)?$", script, re.MULTILINE)
    ]
    assert len(found) == len(SLURM) + 4
    return [*found, container_of(JOB)["command"][1:]]


def run_of(arguments: list[str]) -> dict[str, Any]:
    """Return the options of a `ckptstore run`, as the command line understands them."""
    name, *rest = arguments
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    return command.make_context(name, rest).params


def test_each_command_that_is_shown_is_understood() -> None:
    for arguments in commands_shown():
        options = run_of(arguments)
        assert options["command_line"][-2:] == (options["command_line"][-2], "train.py")
        assert options["command_line"][-2].endswith("python")
    with pytest.raises(click.UsageError):
        run_of(["run", "runs/digits", "--gracious", "--", "python", "train.py"])


def test_the_exit_codes_are_those_of_the_commands() -> None:
    assert (TRY_AGAIN, exit_code(LockedError("busy"))) == (75, 4)
    stopped, given_up = (
        rule["onExitCodes"]["values"] for rule in JOB["spec"]["podFailurePolicy"]["rules"][::2]
    )
    assert stopped == [TRY_AGAIN, 128 + signal.SIGTERM]
    wrong = InvalidArgumentError(argument="x", value=1, reason="wrong")
    assert given_up == [exit_code(wrong), NOT_EXECUTABLE, NOT_FOUND]
    service = settings_of_unit()["Service"]
    assert service["RestartForceExitStatus"] == service["SuccessExitStatus"] == str(TRY_AGAIN)
    assert "ends\nwith exit code 4" in PAGES["services"] or "ends with exit code 4" in PAGES["services"]
    assert all(f'"$code" -eq {TRY_AGAIN} ]' in script for script in SLURM)


# --- Slurm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SLURM, ids=["srun", "shell"])
def test_the_directives_of_a_job_are_slurms_and_leave_time_for_a_save(script: str) -> None:
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script, re.MULTILINE))
    assert len(directives) == script.count("#SBATCH")
    assert set(directives) == {"job-name", "time", "signal", "requeue", "open-mode"}
    assert directives["open-mode"] == "append" and re.fullmatch(r"\d\d:\d\d:\d\d", directives["time"])
    found = re.fullmatch(r"(B:)?USR1@(\d+)", directives["signal"])
    assert found is not None
    assert (found[1] is None) == ("srun " in script)
    [arguments] = [shown for shown in commands_shown() if " ".join(shown) in script][:1]
    assert run_of(arguments)["grace"] < int(found[2])


@pytest.mark.parametrize("script", SLURM, ids=["srun", "shell"])
@pytest.mark.parametrize(("ends_with", "queued"), [(0, False), (1, False), (75, True), (137, False)])
def test_a_job_asks_for_another_turn_if_it_was_stopped(
    tmp_path: Path, script: str, ends_with: int, queued: bool
) -> None:
    around = f"""
        srun() {{ "$@"; }}
        ckptstore() {{ [ "$*" = "run runs/digits --grace 100 -- python train.py" ] && return {ends_with}; }}
        scontrol() {{ echo "$*" > queued; }}
    """
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-u", "-c", around + script], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == ends_with
    assert (tmp_path / "queued").exists() == queued
    assert not queued or (tmp_path / "queued").read_text() == "requeue 7\n"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_shell_passes_the_signal_on_and_waits_for_the_save(tmp_path: Path, number: signal.Signals) -> None:
    [script] = [script for script in SLURM if "B:" in script]
    # It ends half a second after the signal, as one that saves.
    training = (
        "import signal, sys, time, pathlib\n"
        "stop = lambda number, frame: (time.sleep(0.5), pathlib.Path('saved').write_text(str(number)), sys.exit(75))\n"
        "signal.signal(signal.SIGUSR1, stop); signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('began').touch(); time.sleep(60)"
    )
    (tmp_path / "ckptstore").write_text(f"#!{sys.executable}\n{training}\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$*" > queued\n')
    for name in ("ckptstore", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "-u", "-c", script], cwd=tmp_path, env=environment) as job:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        job.send_signal(number)
        assert job.wait(30) == TRY_AGAIN
    assert (tmp_path / "saved").read_text() == str(int(number))
    assert (tmp_path / "queued").read_text() == "requeue 7\n"


# --- Kubernetes --------------------------------------------------------------------------------------------


def test_the_job_waits_for_a_save_and_counts_no_stop_as_a_failure() -> None:
    pod = JOB["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy requires
    command = container_of(JOB)["command"]
    assert command[0] == "ckptstore"  # process 1, which gets the signal
    assert run_of(command[1:])["grace"] < pod["terminationGracePeriodSeconds"]
    rules = JOB["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert {rule["onExitCodes"]["containerName"] for rule in rules[::2]} == {container_of(JOB)["name"]}
    [volume], [mount] = pod["volumes"], container_of(JOB)["volumeMounts"]
    assert volume["name"] == mount["name"] and run_of(command[1:])["store_path"].is_relative_to(
        mount["mountPath"]
    )
    shell, flag, hook = HOOK["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    assert subprocess.run(["sh", "-n", "-c", hook], check=False).returncode == 0


def test_the_hook_stops_what_a_shell_has_started_and_the_shell_ends_as_that(tmp_path: Path) -> None:
    found = re.search(r"`ckptstore run \.\.\. (& echo .*?)`", PAGES["job-queues"])
    assert found is not None
    number = tmp_path / "training"
    training = "import pathlib, signal, sys, time; stop = lambda number, frame: sys.exit(75); "
    training += "signal.signal(signal.SIGTERM, stop); pathlib.Path('began').touch(); time.sleep(60)"
    shell = f"{shlex.join([sys.executable, '-c', training])} {found[1]}".replace("/tmp/training", str(number))
    hook = HOOK["lifecycle"]["preStop"]["exec"]["command"][2].replace("/tmp/training", str(number))
    with subprocess.Popen(["sh", "-c", shell], cwd=tmp_path) as started:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        assert (
            subprocess.run(["sh", "-c", hook], check=False, timeout=30, stderr=subprocess.DEVNULL).returncode
            == 0
        )
        assert started.wait(30) == TRY_AGAIN


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kubernetes_schemas_accept_the_job_with_and_without_the_hook() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    with_hook = yaml.safe_load(yaml.safe_dump(JOB))
    container_of(with_hook).update(HOOK)
    found = re.search(r"schemas of Kubernetes 1\.(\d+) to 1\.(\d+)", " ".join(PAGES["job-queues"].split()))
    assert found is not None
    for minor in (int(found[1]), int(found[2])):
        for job in (JOB, with_hook):
            kubernetes.validate(job, f"1.{minor}", strict=True)
    container_of(with_hook)["lifecycle"]["prestop"] = {}
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(with_hook, f"1.{found[2]}", strict=True)


# --- systemd, cron, nohup ----------------------------------------------------------------------------------


def test_the_unit_waits_for_a_save_and_restarts_what_was_stopped() -> None:
    service = settings_of_unit()["Service"]
    assert service["KillMode"] == "mixed" and service["Restart"] == "on-abnormal"
    _, arguments = service["ExecStart"].split("ckptstore ", 1)
    assert run_of(shlex.split(arguments))["grace"] < int(service["TimeoutStopSec"])
    assert "`--grace` of 120 seconds" in " ".join(PAGES["services"].split())
    assert run_of(shlex.split(arguments))["grace"] == 120


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    def said(unit: str) -> str:
        path = tmp_path / "digits.service"
        here = unit.replace("/home/ada/digits/.venv/bin/ckptstore", str(shutil.which("true")))
        path.write_text(here.replace("User=ada\n", ""))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, check=False
        )
        return "\n".join(line for line in done.stderr.splitlines() if str(path) in line) + done.stdout

    assert said(UNIT) == ""
    assert "Unknown key" in said(UNIT.replace("KillMode", "KillMod"))
    assert "Failed to parse" in said(UNIT.replace("KillMode=mixed", "KillMode=mixd"))


def test_the_lines_for_cron_and_nohup_are_theirs() -> None:
    times = [time for time, _ in lines_of_crontab()]
    assert times == ["@reboot", "*/10 * * * *"]
    for line in (NOHUP, *(line for _, line in lines_of_crontab())):
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0
        assert "%" not in line  # cron would begin a new line there


# --- notebooks ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_notebook_whose_kernel_dies_resumes_in_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    [cell] = (block.code for block in blocks(PAGES["services"], "python"))
    # The kernel dies in the 100th batch of the first execution, in the second epoch of 57 batches.
    dying = (
        "import os, signal, pathlib, keras\n"
        "class Dying(keras.callbacks.Callback):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        if self.model.optimizer.iterations == 100 and not pathlib.Path('died').exists():\n"
        "            pathlib.Path('died').touch(); saving.wait(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    fit = cell.replace("callbacks=[saving]", "callbacks=[saving, Dying()]")
    assert fit != cell
    end = "print(repr(history.history['loss'][-1]), saving.resumed_from and saving.resumed_from.step)"

    def executed() -> list[str]:
        cells = [nbformat.v4.new_code_cell(source) for source in (dying, fit, end)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        in_folder = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(notebook, timeout=240, resources=in_folder).execute()
        printed = [
            output["text"] for output in notebook.cells[-1].outputs if output["output_type"] == "stream"
        ]
        return "".join(printed).split()

    with pytest.raises(nbclient.exceptions.DeadKernelError):
        executed()
    loss, resumed_from = executed()
    assert 57 < int(resumed_from) < 100
    (tmp_path / "undisturbed").mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    names: dict[str, Any] = {}
    exec(cell, names)
    assert names["saving"].resumed_from is None
    assert repr(names["history"].history["loss"][-1]) == loss
    exec(cell, names)  # the cell again, in the same kernel: the run has finished
    assert names["saving"].resumed_from.step == 171
    assert names["model"].optimizer.iterations == 171
