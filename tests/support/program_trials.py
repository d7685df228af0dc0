"""Tries a script plain, with its callback, killed and started again, and compares what it leaves."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from program_server import Kill, Ran, Server
from program_table import PROGRAMS

FOLDER = Path(__file__).resolve().parent.parent / "programs"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result of a program on a backend.

    Attributes:
        name: The program.
        kind: What it is like.
        backend: The backend.
        uninterrupted: What differs with the callback from the plain run.
        killed: What differs after deaths and restarts from the plain run.
        again: What differs when the script is started again after it has ended.
        failed: What went wrong otherwise, or nothing.
        said: Warnings that the plain run does not have.
        deaths: Where it was killed.
        overhead_cpu_s: What the callback cost, in CPU seconds, with its writer.
        plain_cpu_s: What the plain run cost.
    """

    name: str
    kind: str
    backend: str
    uninterrupted: tuple[str, ...] = ()
    killed: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    failed: str = ""
    said: tuple[str, ...] = ()
    deaths: tuple[str, ...] = ()
    overhead_cpu_s: float = 0.0
    plain_cpu_s: float = 0.0

    def as_json(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return asdict(self)


def try_program(server: Server, name: str, folder: Path, backend: str) -> Trial:
    """Try a program on a backend; nothing is raised for what goes wrong in it."""
    program = PROGRAMS[name]
    script = FOLDER / f"{name}.py"
    facts = {"name": name, "kind": program.kind, "backend": backend}
    for part in ("plain", "compiled", "saved", "killed"):
        (folder / part).mkdir()
    plain = server.run(script, folder / "plain", saves=False)
    if backend == "jax" and plain.status == 0:
        # The first run has filled JAX' cache of compiled programs, which the others use.
        first, plain = plain, server.run(script, folder / "compiled", saves=False)
        if plain.status == 0 and (moved := differences(first, plain, program.compares)):
            return Trial(**facts, failed=f"two plain runs differ: {', '.join(moved)}")
    if plain.status != 0:
        return Trial(**facts, failed=f"plain: ended by {plain.status}\n{plain.output[-3000:]}")
    saved = server.run(script, folder / "saved", saves=True)
    if saved.status != 0:
        return Trial(**facts, failed=f"with the callback: ended by {saved.status}\n{saved.output[-3000:]}")
    costs = {"overhead_cpu_s": round(saved.cpu_s - plain.cpu_s, 2), "plain_cpu_s": round(plain.cpu_s, 2)}
    known = set(map(_masked, plain.warned))
    said = [text for text in saved.warned if _masked(text) not in known]
    deaths: list[str] = []
    for kill in deaths_for(name, backend, saved.counts):
        ran = server.run(script, folder / "killed", saves=True, kill=kill)
        said += [text for text in ran.warned if _masked(text) not in known]
        if ran.status == 0:
            break
        if ran.status != -signal.SIGKILL:
            return Trial(
                **facts,
                **costs,
                said=tuple(said),
                failed=f"killed: ended by {ran.status}\n{ran.output[-3000:]}",
            )
        deaths.append(f"{kill.event} {kill.number}")
    resumed = server.run(script, folder / "killed", saves=True)
    again = server.run(script, folder / "killed", saves=True)
    said += [text for ran in (resumed, again) for text in ran.warned if _masked(text) not in known]
    facts |= {"said": tuple(dict.fromkeys(said)), "deaths": tuple(deaths)}
    for where, ran in (("resumed", resumed), ("started again after its end", again)):
        if ran.status != 0:
            return Trial(**facts, **costs, failed=f"{where}: ended by {ran.status}\n{ran.output[-3000:]}")
    return Trial(
        **facts,
        **costs,
        uninterrupted=differences(saved, plain, program.compares, traces=True),
        killed=differences(resumed, plain, program.compares),
        again=differences(again, plain, program.compares),
        failed="" if deaths else "it was never killed",
    )


def differences(
    ran: Ran, plain: Ran, compares: tuple[str, ...] = (), *, traces: bool = False
) -> tuple[str, ...]:
    """Return the names under which two runs have left different things; of texts also where they begin to differ.

    Args:
        ran: A run.
        plain: The plain run.
        compares: The script's names that are compared; by default all. Names of models, layers and variables, and the
            state of the process, always are.
        traces: Whether to compare also what is left behind by tracing a model, which a resumed run does more often:
            the attributes that models have, and names of tensors.
    """
    assert ran.left is not None
    assert plain.left is not None
    assert plain.left.keys() >= set(compares)
    names = [
        name
        for name in sorted(ran.left.keys() | plain.left.keys())
        if (not compares or name in compares or ": " in name)
        and (traces or not name.endswith((": attributes", ": names of tensors")))
    ]
    pairs = [(name, plain.left.get(name), ran.left.get(name)) for name in names]
    return tuple(_difference(*pair) for pair in pairs if pair[1] != pair[2])


def _difference(name: str, plain: str | None, ran: str | None) -> str:
    if plain is None or ran is None or ": " not in name:
        return name
    same = next(
        (index for index, (one, other) in enumerate(zip(plain, ran, strict=False)) if one != other), 0
    )
    begin = max(0, same - 40)
    return f"{name} (... {plain[begin : begin + 100]} -> ... {ran[begin : begin + 100]})"


def deaths_for(name: str, backend: str, counts: dict[str, int]) -> list[Kill]:
    """Choose where to kill a program: in an epoch, before or after an epoch's end, in a save.

    Not more often: a checkpoint that was started from three times without a save since is skipped.
    """
    draw = random.Random(f"{name} {backend}")
    if not (batches := counts.get("batch", 0)):
        # A loop by hand.
        saves = counts["saved"]
        return [
            Kill(event="file", number=draw.randrange(1, 40)),
            Kill(event="saved", number=max(1, saves // 3)),
            Kill(event="save", number=max(1, saves // 4)),
        ]
    return [
        Kill(event="batch", number=draw.randrange(max(1, batches // 4), max(2, batches // 2))),
        Kill(event="epoch end", number=draw.randrange(1, 3)),
        Kill(event="file", number=draw.randrange(1, 30)),
    ]


def _masked(text: str) -> str:
    return re.sub(r"\d+", "N", text)


def unexpected(trial: Trial) -> list[str]:
    """Return what is not as the table of programs says; nothing is well."""
    program = PROGRAMS[trial.name]
    expected = program.says.get(trial.backend, ())
    found = [trial.failed] if trial.failed else []
    if trial.uninterrupted:
        found.append(f"differs with the callback: {', '.join(trial.uninterrupted)}")
    found += [f"not said: {part}" for part in expected if not any(part in text for text in trial.said)]
    found += [f"said: {text}" for text in trial.said if not any(part in text for part in expected)]
    if trial.backend not in program.inexact:
        if trial.killed:
            found.append(f"differs when it was killed, and nothing is said: {', '.join(trial.killed)}")
        if trial.again:
            found.append(f"differs when it is started again after its end: {', '.join(trial.again)}")
    return found


def table(trials: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of trials as JSON has them."""
    head = ("program", "kind", "backend", "a = b", "a = c", "overhead, CPU s", "plain, CPU s")
    rows = [head]
    for trial in sorted(trials, key=lambda trial: (trial["name"], trial["backend"])):
        costs = (f"{trial['overhead_cpu_s']:.2f}", f"{trial['plain_cpu_s']:.2f}")
        differs = trial["killed"] or trial["again"]
        killed = "yes" if not differs else "no, said" if trial["said"] else "no"
        saved = "no" if trial["uninterrupted"] else "yes"
        results = ("failed", "failed") if trial["failed"] else (saved, killed)
        rows.append((trial["name"], trial["kind"], trial["backend"], *results, *costs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [lines[0], " | ".join("-" * width for width in widths), *lines[1:]]


def main() -> None:
    """Print the table of a file of trials, if there is one."""
    if (file := Path(sys.argv[1])).exists():
        print("\n".join(table(json.loads(file.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
