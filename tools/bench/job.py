"""Saves and restores by a job of several processes, and restores of what it saved by one process with one device.

Started by the benchmark as `python -m bench.job SPECIFICATION RESULT`: JSON, and the path of a file. Keras is imported
once, then the processes are forked.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from bench import job_restores, job_saves, workloads
from bench.workloads import NotAvailableError, Workload

Result = dict[str, Any]


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def in_processes(count: int, folder: Path, devices: int, action: Callable[[int], Result]) -> list[Result]:
    """Run a function in forked processes, with their numbers, and return its results.

    Args:
        count: The number of processes; several are connected by jax.distributed.
        folder: Where they put their results.
        devices: The devices of each, forced on the CPU.
        action: The function.

    Raises:
        RuntimeError: A process failed; with the last line of its traceback.
    """
    address = f"127.0.0.1:{free_port()}"
    children = []
    for process in range(count):
        child = os.fork()
        if child == 0:
            os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
            _child(process, count, folder, address, action)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    found = []
    for process in range(count):
        path = folder / f"{process}.json"
        result: Result = json.loads(path.read_text()) if path.exists() else {"failed": "it was killed"}
        if "failed" in result:
            raise RuntimeError(f"process {process}: {result['failed']}")
        path.unlink()
        found.append(result)
    return found


def _child(process: int, count: int, folder: Path, address: str, action: Callable[[int], Result]) -> None:
    result: Result
    try:
        if count > 1:
            import jax

            jax.distributed.initialize(address, count, process)
        result = action(process)
    except BaseException as error:
        traceback.print_exc()
        text = str(error).strip().partition("\n")[0]
        result = {"failed": f"{type(error).__name__}: {text}"}
    # Renamed, so that no process sees a part of it.
    (folder / f"{process}.tmp").write_text(json.dumps(result), encoding="utf-8")
    (folder / f"{process}.tmp").rename(folder / f"{process}.json")
    if process == 0 and "failed" not in result:
        # The messages of the others go through this process.
        job_saves.wait_for([folder / f"{other}.json" for other in range(1, count)])
    sys.stderr.flush()
    os._exit(0)


def measure(specification: Result) -> Result:
    """Measure one job, and the restores of what it has saved.

    Raises:
        NotAvailableError: The backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        raise NotAvailableError("keras.distribution is JAX's")
    workload: Workload = workloads.by_name(quick=specification["quick"])[specification["workload"]]
    folder, names = Path(specification["folder"]), specification["subjects"]
    saved = in_processes(
        workload.processes,
        folder,
        workload.devices,
        lambda process: job_saves.measure(workload, folder, names, process),
    )
    noted = [result.pop("saved") for result in saved]
    (alone,) = in_processes(1, folder, 1, lambda _: job_restores.measure_alone(workload, folder, noted))
    return {"processes": saved, "alone": alone}


def main() -> None:
    """Measure, and write the result."""
    warnings.simplefilter("ignore")
    try:
        result = measure(json.loads(sys.argv[1]))
    except NotAvailableError as error:
        result = {"unavailable": str(error)}
    except Exception as error:
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
