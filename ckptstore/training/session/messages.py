"""Messages about a resume: one line that names what was resumed, and a warning for what may not be exact."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ckptstore.keras.private import print_message, start_at_epoch
from ckptstore.keras.state.user_state import UserStateReport
from ckptstore.records import Checkpoint
from ckptstore.system import messages
from ckptstore.training.data.exactness import OTHER_FIRST_BATCH
from ckptstore.training.data.replay_target import ReplayResult
from ckptstore.training.session.resumed_run import ResumedRun


def print_resumed(resumed: ResumedRun, *, finished: bool, epochs: int) -> None:
    """Print what a fit resumes from, and its age; warn of what differs from the fit that saved it."""
    checkpoint = resumed.checkpoint
    where = f"epoch {checkpoint.epoch + 1}"
    where += "" if checkpoint.batch is None else f", batch {checkpoint.batch + 1}"
    line = f"ckptstore: resumed version {checkpoint.version} of run {checkpoint.run}, after {where}"
    line += f", saved {_age(resumed)} ago"
    if finished:
        early = "" if resumed.next_epoch >= epochs else "it was stopped early; "
        line += f"; {early}nothing is left to train of {epochs} epochs"
    print_message(line)
    if resumed.drift:
        changes = "; ".join(resumed.drift)
        _warn(f"the run continues with other settings, data or versions than it was saved with: {changes}")
    if resumed.not_finite is not None:
        _warn(
            f"version {checkpoint.version} holds weights that are not finite ({resumed.not_finite}), though the loss "
            "was: training cannot recover from them; restore an older version, and start again from it (resume='never')"
        )
    if "data" not in resumed.values:
        _warn(
            f"version {checkpoint.version} was not saved by a callback that resumes: History, the state of other "
            "callbacks and the position in the data are not known, so that the run will not be exact"
        )


def print_later_fit(run: str) -> None:
    """Print that a fit is not the first of this process on its store, and so is another run."""
    print_message(
        f"ckptstore: each fit of this process is a run of its own: this one is {run}; run='...' gives it a name"
    )


def warn_without_state(checkpoint: Checkpoint | None) -> None:
    """Warn of a run that begins at its first epoch though it has checkpoints: none can be resumed from."""
    if checkpoint is None:
        return
    loss = checkpoint.metrics.get("loss", 0.0)
    why = (
        "all were saved without training state"
        if math.isfinite(loss)
        else f"the loss of each was not finite ({loss})"
    )
    _warn(
        f"run {checkpoint.run} starts over: it has checkpoints (the latest is version {checkpoint.version}), but none "
        f"can be resumed from, since {why}"
    )


def _age(resumed: ResumedRun) -> str:
    seconds = max((datetime.now(UTC) - resumed.checkpoint.created_at).total_seconds(), 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def print_replay_result(replay_result: ReplayResult) -> None:
    """Print what the replay of the data has cost; warn of generators that make it inexact."""
    if replay_result.batches:
        skipped = "1 batch" if replay_result.batches == 1 else f"{replay_result.batches} batches"
        print_message(f"\nckptstore: {skipped} skipped in {replay_result.seconds:.2f} s, training continues")
    if replay_result.inexact:
        _warn(
            "the run will not be exact: the data draws random numbers during an epoch from the global generator of "
            f"{', '.join(replay_result.inexact)}, and so does the training"
        )
    if replay_result.is_other_data:
        _warn(f"the run will not be exact: {OTHER_FIRST_BATCH}")


def warn_inexact(reasons: list[str]) -> None:
    """Warn of what may keep the run from being exact."""
    for reason in reasons:
        _warn(f"the run may not be exact: {reason}")


def warn_other_monitor(change: str | None) -> None:
    """Warn that another metric, or another direction, decides about the best from now on."""
    if change is not None:
        _warn(change)


def warn_not_restored(keys: list[str], added: list[str]) -> None:
    """Warn of callbacks whose state could not be restored; `added` are those that the saved fit did not have."""
    names = ", ".join(key.rpartition(":")[0] for key in keys if key not in added)
    if names:
        _warn(f"callbacks without get_state() and set_state(state) start again without their state: {names}")
    if added:
        names = ", ".join(key.rpartition(":")[0] for key in added)
        _warn(f"callbacks that the fit did not have when it was saved start as new: {names}")


def warn_user_state(report: UserStateReport) -> None:
    """Warn of state of the user's code that could not be restored, or that a compiled step does not see."""
    warn_lost(report.lost)
    if report.compiled:
        _warn(
            f"the run may not be exact: {', '.join(report.compiled)} changed while training, and a compiled step holds "
            "such values as they were when it was compiled; after this resume it is compiled with the restored ones. "
            "Keep them in variables (self.add_weight), or compile the model with run_eagerly=True"
        )


def warn_lost(paths: Sequence[str]) -> None:
    """Warn of values of the user's code that could not be restored."""
    if paths:
        _warn(
            "the run may not be exact: training changes values that Keras does not track, and these could not be "
            f"restored: {'; '.join(paths)}. Keep them in variables (self.add_weight), or in a callback with "
            "get_state() and set_state(state)"
        )


def begin_without_loop(resumed: ResumedRun | None, model: Any, *, on_bad_loss: str | None = None) -> None:
    """Begin at the resumed epoch in a loop that is not Keras' own; warn that only the epoch is resumed there."""
    text = "this training loop is not Keras' own: other callbacks and the position in the data are not saved"
    if on_bad_loss is not None:
        text += f", and no loss is watched (on_bad_loss={on_bad_loss!r})"
    if resumed is None:
        _warn(text)
        return
    start_at_epoch(model, resumed.next_epoch)
    again = f"; {resumed.batches} batches of the epoch are trained on again" if resumed.batches else ""
    _warn(f"{text}; continuing at the beginning of epoch {resumed.next_epoch + 1}{again}")


def print_stopped(received: signal.Signals, path: Path) -> None:
    """Print that a signal ends the fit, and where it resumes from."""
    print_message(
        f"\nckptstore: {received.name} received, training stops; started again, it resumes from {path}"
    )


def _warn(text: str) -> None:
    messages.warn(text, UserWarning)
