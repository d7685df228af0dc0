"""Runs a program with a training loop written by hand: whole, and killed and started again; prints what each comes to.

    python loop_runs.py PROGRAM FOLDER

imports the backend once and forks for each run. The output is a line of JSON for each: how it ended, and a digest of
what the program's `model` and `objects` hold at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


def runs_of(program: str, folder: Path, backend: str) -> list[dict[str, Any]]:
    """Run a program whole, then killed twice and started again; return how each ended."""
    path = folder / "program.py"
    path.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, path, folder],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _digest(model: Any, objects: dict[str, Any]) -> str:
    from ckptstore.keras.state import objects as objects_state
    from ckptstore.keras.state.arrays import host_array

    digest = hashlib.sha256()
    document, arrays = objects_state.collect(objects)
    digest.update(json.dumps(document, sort_keys=True).encode())
    for array in [*map(host_array, model.variables), *arrays.values()]:
        digest.update(array.tobytes())
    return digest.hexdigest()


def _child(code: Any, die_in_step: int | None) -> dict[str, Any]:
    from ckptstore.storage import files

    steps = 0

    def hook(operation: str, path: Path, phase: str) -> None:
        nonlocal steps
        steps += 1
        if steps == die_in_step:
            os.kill(os.getpid(), signal.SIGKILL)

    files._hooks.append(hook)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    checkpoint = names["checkpoint"]
    return {
        "digest": _digest(names["model"], names["objects"]),
        "steps": steps,
        "resumed": None if checkpoint is None else checkpoint.version,
    }


def _run(code: Any, folder: Path, processes: int, die_in_step: int | None = None) -> dict[str, Any]:
    """Run the program in forked processes, the first of which may die; return how that ended, and what each held."""
    folder.mkdir(exist_ok=True)
    results = [folder / f"{rank}.json" for rank in range(processes)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    children = []
    for rank, result in enumerate(results):
        result.unlink(missing_ok=True)
        children.append(os.fork())
        if children[-1] == 0:
            os.chdir(folder)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            try:
                result.write_text(json.dumps(_child(code, die_in_step if rank == 0 else None)))
            except BaseException:
                result.write_text(json.dumps({"error": traceback.format_exc()}))
                os._exit(1)
            os._exit(0)
    statuses = []
    for child in children:
        if statuses and statuses[0] != 0:
            # As torchrun does when one has failed.
            os.kill(child, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    held = [json.loads(result.read_text()) if result.exists() else {} for result in results]
    return {"status": statuses[0], "digests": [one.get("digest") for one in held], **held[0]}


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def main() -> None:
    """Run the program of the command line."""
    import keras  # noqa: F401

    import ckptstore.keras.model.adapter
    import ckptstore.store.store  # noqa: F401

    program, folder = Path(sys.argv[1]), Path(sys.argv[2])
    text = program.read_text(encoding="utf-8")
    code = compile(text, str(program), "exec")
    processes = 2 if "init_process_group" in text else 1
    whole = _run(code, folder / "whole", processes)
    print(json.dumps(whole))
    if whole["status"] != 0:
        return
    steps = whole["steps"]
    for die_in_step in (steps * 2 // 5, steps * 2 // 5, None):
        print(json.dumps(_run(code, folder / "killed", processes, die_in_step)))


if __name__ == "__main__":
    main()
