"""The processes of a training that is tried: its length, their environment, and which there are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

STEPS_PER_EPOCH = 30
_TOOLS = Path(__file__).resolve().parent.parent


def environment() -> dict[str, str]:
    """Return the environment of a training: on this machine's processor, by JAX unless KERAS_BACKEND says otherwise."""
    paths = [str(_TOOLS), str(_TOOLS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(paths)}
    return {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ, **chosen}


def processes_of(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the processes whose command, environment or directory names a folder, but for this one."""
    needle = os.fsencode(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            if not command:
                continue  # it is a zombie, which its parent has to reap, or the kernel's
            texts = (command, (entry / "environ").read_bytes(), os.fsencode((entry / "cwd").readlink()))
            if any(needle in text for text in texts):
                yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")[:120]
