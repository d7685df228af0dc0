"""Watches the losses of a fit, and answers one that went bad: with a warning, by stopping, or by a rollback.

A rollback takes weights, optimizer, metrics and the model's own random generators back to a resume point, and leaves
everything else as it is: the data continues behind the bad batch, and so do the global random generators (the data
draws from them), the other callbacks, and the learning rates that these have set. So the batches that led there are
skipped without reading them again. The state that follows is saved at once; a fit that resumes from it or from any
later checkpoint skips the same batches, and one that was killed before goes through the same rollback again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import keras

from ckptstore.errors import InvalidArgumentError
from ckptstore.keras.private import FitLoop, logs_mean_loss, print_message
from ckptstore.keras.state.user_state import UserState
from ckptstore.metrics import scalar
from ckptstore.records import Checkpoint
from ckptstore.system import messages
from ckptstore.training.saving.saves import Saves
from ckptstore.training.session.bad_loss import BadLoss, LossDetector
from ckptstore.training.session.batch_losses import BatchLosses
from ckptstore.training.session.messages import warn_lost
from ckptstore.training.session.position import BatchPosition
from ckptstore.training.session.rollback import Rollback

OnBadLoss = Literal["stop", "rollback", "warn"]
Logs = Mapping[str, Any]

# Numbers that Keras' own thread has read and the fit has not taken.
_MAX_SEEN = 8


def check_on_bad_loss(on_bad_loss: object, max_rollbacks: object) -> None:
    """Check ``on_bad_loss`` and ``max_rollbacks``.

    Raises:
        InvalidArgumentError: One cannot be used.

    Example:
        >>> check_on_bad_loss("ignore", 3)
        Traceback (most recent call last):
        ...
        ckptstore.errors.InvalidArgumentError: on_bad_loss='ignore': must be None, 'stop', 'rollback' or 'warn'
    """
    if on_bad_loss not in (None, "stop", "rollback", "warn"):
        raise InvalidArgumentError(
            argument="on_bad_loss", value=on_bad_loss, reason="must be None, 'stop', 'rollback' or 'warn'"
        )
    if not isinstance(max_rollbacks, int) or isinstance(max_rollbacks, bool) or max_rollbacks < 1:
        raise InvalidArgumentError(
            argument="max_rollbacks", value=max_rollbacks, reason="must be a number of rollbacks, 1 or more"
        )


class LossGuard:
    """Watches the losses of one fit.

    Args:
        on_bad_loss: How to answer a bad loss; None to watch nothing.
        max_rollbacks: The most rollbacks of the run, after which it stops.

    Attributes:
        answer: How it answers a bad loss, or None.
        stopped_by: The loss that stopped the fit, or None.
    """

    def __init__(self, on_bad_loss: OnBadLoss | None = None, max_rollbacks: int = 3) -> None:
        self.answer = on_bad_loss
        self._max_rollbacks = max_rollbacks
        self.stopped_by: BadLoss | None = None
        self._detector = LossDetector()
        self._losses = BatchLosses(None)
        self._skipped: list[tuple[int, int]] = []
        self._model: Any = None
        self._saves: Saves | None = None
        self._user_state: UserState | None = None
        self._lags = False
        self._waiting: tuple[int, int, Any] | None = None
        self._seen: dict[int, float | None] = {}
        self._step_before = 0
        self._resets_metrics = False
        self._reported: set[str] = set()
        self._watches_nothing = False

    @property
    def end_detail(self) -> dict[str, Any] | None:
        """The record of the loss that stopped the fit, or None if none did."""
        bad = self.stopped_by
        return None if bad is None else {"loss": bad.what, "where": bad.where}

    def begin(self, model: Any, loop: FitLoop, saves: Saves, user_state: UserState | None) -> None:
        """Begin to watch a fit; `user_state` is what the user's code keeps on the model."""
        if self.answer is None:
            return
        self._model, self._saves, self._user_state = model, saves, user_state
        self._losses = BatchLosses(logs_mean_loss(model), keras.config.floatx())
        # Where Keras does not wait for a batch's result, neither do we: it is looked at one batch later.
        self._lags = loop.calls_hooks_in_thread

    def end(self) -> None:
        """Release the fit; the counts stay for those that ask how it ended."""
        self._model = self._saves = self._user_state = self._waiting = None
        self._seen.clear()

    # --- hooks -------------------------------------------------------------------------------------

    def epoch_begins(self, step: int) -> None:
        """Take note of a new epoch, and of the run's finished batches."""
        self._losses.begin_epoch()
        self._seen.clear()
        self._step_before, self._resets_metrics = step, False

    def batch_begins(self) -> None:
        """Reset the metrics after a rollback to an earlier epoch, now that there is a batch to count."""
        if self._resets_metrics:
            self._resets_metrics = False
            self._model.reset_metrics()

    def logs_arrived(self, batch: int, logs: Logs) -> None:
        """Take the numbers that Keras has read, in a thread of its own: the fit need not read them again."""
        if self._lags and self._saves is not None:
            if len(self._seen) > _MAX_SEEN:
                self._seen.clear()
            self._seen[batch] = scalar(logs.get("loss"))

    def batch_ends(
        self, batch: int, position: BatchPosition, logs: Logs | None, *, due: bool, urgent: bool
    ) -> tuple[bool, Logs | None]:
        """Look at the loss of a batch, and answer a bad one.

        Args:
            batch: The batch, as Keras counts.
            position: The position of the fit, this batch included.
            logs: Its logs.
            due: True if a save is due.
            urgent: True if the fit ends with it.

        Returns:
            Whether to save now, and with which logs: none after a rollback, since they are of other weights.
        """
        if self._saves is None:
            return due, logs
        if self.stopped_by is not None:
            return False, logs
        loss = (logs or {}).get("loss")
        bad = self._look_at_waiting(position)
        if bad is None:
            self._waiting = batch, position.batch, loss
            if loss is None:
                self._warn_unwatched(f'logs no "loss", but {", ".join(map(str, logs or {})) or "nothing"}')
            # Of a step of the model's own, what it logs is to be compared with its metrics as they are after it.
            is_waited_for = not self._lags or self._losses.is_mean is None
            if is_waited_for or due or position.batches == position.per_epoch:
                bad = self._look_at_waiting(position)
            else:
                self._start_copy(loss)
        if bad is None:
            # A spike that has just begun: what is due is saved once it has turned out to be none.
            is_early = self._detector.is_suspicious and self.answer != "warn" and not urgent
            return due and not is_early, logs
        return self._react(bad, position, logs, due=due)

    def epoch_ends(self, position: BatchPosition, logs: Logs, *, due: bool) -> tuple[bool, Logs]:
        """Look at the logs of an epoch, and answer a bad loss among them; as `batch_ends`."""
        if self._saves is None:
            return due, logs
        if self.stopped_by is not None:
            return False, logs
        bad = self._look_at_waiting(position) or self._bad_in(logs, position)
        if bad is None:
            return due, logs
        save, chosen = self._react(bad, position, logs, due=due)
        return save, chosen or {}

    def refuses_save(self, logs: Logs | None) -> bool:
        """Return True if a state must not be saved, since its loss is bad."""
        if self._saves is None or self.answer == "warn":
            return False
        loss = scalar((logs or {}).get("loss"))
        return self.stopped_by is not None or (loss is not None and not math.isfinite(loss))

    @property
    def rollbacks(self) -> tuple[tuple[int, int], ...]:
        """The steps that the run went back to and came from, of each rollback so far."""
        return tuple(self._skipped)

    @property
    def may_go_back(self) -> bool:
        """True while a rollback may go back further than to the newest checkpoints, which may not be sound either.

        That is while the losses rise, and after a rollback until one is sound: what it went to may be spoilt itself.
        """
        if self._saves is None or self.answer != "rollback":
            return False
        return self._detector.is_rising or self._is_unproven(self._detector.sound_step)

    def _is_unproven(self, sound_step: int) -> bool:
        """Return True if not one batch was sound since the last rollback."""
        return bool(self._skipped) and sound_step <= self._skipped[-1][1]

    # --- losses ------------------------------------------------------------------------------------

    def _start_copy(self, loss: Any) -> None:
        """Have a device copy the number as soon as it is computed (JAX)."""
        copy = getattr(loss, "copy_to_host_async", None)
        if copy is not None:
            copy()

    def _look_at_waiting(self, position: BatchPosition) -> BadLoss | None:
        """Judge the batch that waits to be looked at, if there is one."""
        if self._waiting is None:
            return None
        (batch, index, logged), self._waiting = self._waiting, None
        seen = self._seen.pop(batch, None)
        value = scalar(logged) if seen is None else seen
        step, self._step_before = self._step_before, (position.steps_before or 0) + index + 1
        if value is None:
            if logged is not None:
                self._warn_unwatched('logs a "loss" that is no single number')
            return None
        if self._losses.is_mean is None and self._losses.count == 1:
            self._losses.is_mean = logs_mean_loss(self._model, value)
        loss, error = self._losses.of(value)
        if loss is None or not self._detector.is_bad(loss, step, error=error):
            if math.isfinite(value):
                self._reported.discard("loss")
            return None
        is_spike = math.isfinite(loss)
        return BadLoss(
            kind="spike" if is_spike else "not finite",
            value=loss,
            bound=self._detector.bound if is_spike else None,
            epoch=position.epoch,
            batch=index,
            sound_step=self._detector.sound_step,
        )

    def _bad_in(self, logs: Logs, position: BatchPosition) -> BadLoss | None:
        """Return the first loss among the logs of an epoch that is not finite, or None."""
        for name in ("loss", "val_loss"):
            value = scalar(logs.get(name))
            if value is None:
                continue
            if math.isfinite(value):
                self._reported.discard(name)
            else:
                return BadLoss(
                    kind="not finite",
                    value=value,
                    name=name,
                    epoch=position.epoch,
                    batch=None,
                    sound_step=position.step,
                )
        return None

    # --- answers -----------------------------------------------------------------------------------

    def _react(
        self, bad: BadLoss, position: BatchPosition, logs: Logs | None, *, due: bool
    ) -> tuple[bool, Logs | None]:
        if self.answer == "warn":
            self._warn(bad)
            return due, logs
        if self.answer == "stop":
            self._stop(bad, position, "")
            return False, logs
        if len(self._skipped) >= self._max_rollbacks:
            self._stop(bad, position, f" after {len(self._skipped)} rollbacks")
            return False, logs
        return self._roll_back(bad, position), {}

    def _warn(self, bad: BadLoss) -> None:
        assert self._saves is not None
        if bad.name not in self._reported:
            self._saves.record_bad_loss(bad.detail())
            messages.warn(f"{bad.what} at {bad.where}", UserWarning)
        if bad.kind == "not finite":
            self._reported.add(bad.name)
        else:
            self._detector.begin_again()

    def _warn_unwatched(self, why: str) -> None:
        if not self._watches_nothing:
            self._watches_nothing = True
            messages.warn(
                f"on_bad_loss={self.answer!r} sees no loss in this fit: the training step {why}. Have train_step "
                'return the number to watch as "loss", beside what else it returns',
                UserWarning,
            )

    def _stop(self, bad: BadLoss, position: BatchPosition, why: str) -> None:
        assert self._saves is not None
        detail = bad.detail() | {"from_step": position.step}
        point = self._saves.roll_back(None, sound_step=bad.sound_step, detail=detail)
        self._end_fit(bad, why, point)

    def _end_fit(self, bad: BadLoss, why: str, point: Checkpoint | None) -> None:
        self.stopped_by = bad
        known = (
            "there is no sound resume point from before (save_freq sets how often one is saved)"
            if point is None
            else f"the newest resume point is version {point.version}"
        )
        print_message(f"\nckptstore: {bad.what} at {bad.where}: training stops{why}; {known}")
        self._model.stop_training = True

    def _roll_back(self, bad: BadLoss, position: BatchPosition) -> bool:
        """Take the model back; returns False if there is nothing to go back to, so that the fit stops."""
        assert self._saves is not None
        sound = bad.sound_step
        if self._is_unproven(sound):
            # What the last rollback went to is not sound either.
            sound = self._skipped[-1][0] - 1
        rollback = Rollback(self._model, self._user_state)
        detail = bad.detail() | {"from_step": position.step, "rollback": len(self._skipped) + 1}
        point = self._saves.roll_back(rollback.load, sound_step=sound, detail=detail)
        if point is None or point.step is None:
            self._end_fit(bad, "", None)
            return False
        in_epoch = point.epoch == position.epoch and point.batch is not None
        has_metrics = rollback.finish()
        self._resets_metrics = has_metrics and not in_epoch
        if has_metrics and in_epoch:
            self._losses.set_state(rollback.values.get("losses", {}).get("batch"))
        else:
            self._losses.begin_epoch()
        self._detector.end_rise()
        self._seen.clear()
        self._waiting, self._step_before = None, position.step
        self._skipped.append((point.step, position.step))
        print_message(
            f"\nckptstore: {bad.what} at {bad.where}: back to version {point.version} (step {point.step}), "
            f"batches skipped: {position.step - point.step}; rollback {len(self._skipped)} of at most "
            f"{self._max_rollbacks}"
        )
        warn_lost(rollback.lost)
        return True

    # --- a fit that is resumed -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return the state, for `set_state` in another process."""
        if self.answer is None:
            return {}
        return {
            "detector": self._detector.state(),
            "batch": self._losses.state(),
            "skipped": [list(steps) for steps in self._skipped],
            "resets_metrics": self._resets_metrics,
        }

    def set_state(self, saved: Mapping[str, Any], *, step: int, in_epoch: bool) -> None:
        """Continue with what `state` returned; empty if the run was not watched when it was saved."""
        self._step_before = step
        if saved:
            self._detector.set_state(saved["detector"])
            self._skipped = [(int(begin), int(end)) for begin, end in saved["skipped"]]
            self._resets_metrics = in_epoch and bool(saved["resets_metrics"])
        if in_epoch:
            self._losses.set_state(saved.get("batch"))
        else:
            self._losses.begin_epoch()
