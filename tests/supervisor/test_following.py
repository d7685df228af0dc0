"""`ckptstore logs -f`, beside a supervisor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ckptstore.store.store import CheckpointStore
from crash.sample_stores import save
from supervised import Start


def test_following_goes_on_through_a_restart_and_ends_with_the_supervisor(
    tmp_path: Path, start: Start
) -> None:
    with CheckpointStore(tmp_path / "store") as store:
        save(store, 5)
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "is_first = not Path('first').exists(); Path('first').touch()\n"
        "print('ready' if is_first else 'again', os.getpid(), flush=True)\n"
        "while not Path('go').exists(): time.sleep(0.02)\n"
        "if is_first: print('end of the first', flush=True); time.sleep(0.1); os.kill(os.getpid(), 9)\n"
        "time.sleep(4); print('end of the second', flush=True)\n"
    )
    running = start(script)
    follower = subprocess.Popen(
        [sys.executable, "-m", "ckptstore", "logs", "store", "-f"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    assert follower.stdout.readline().startswith("ready ")
    (tmp_path / "go").touch()
    out, err = follower.communicate(timeout=60)
    assert running.end()[0] == 0
    words = [line.split()[0] if line.startswith("again") else line for line in out.splitlines()]
    assert words == ["end of the first", "again", "end of the second"], err
    assert (follower.returncode, err.startswith("==> a start that reached no fit")) == (0, True)
