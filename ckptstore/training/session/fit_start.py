"""The beginning of a fit's run: whether to resume, and what to do with a run that another fit has finished."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ckptstore.errors import ModelMismatchError, RunMismatchError
from ckptstore.records import Checkpoint
from ckptstore.training.fingerprint import fingerprint, finished
from ckptstore.training.saving.arguments import Resume


@dataclass(frozen=True, slots=True, kw_only=True)
class FitStart:
    """The beginning of a fit.

    Attributes:
        resume: ``"auto"`` resumes from the newest resume point if there is one, ``"must"`` refuses to begin without
            one, ``"never"`` starts again beside the existing checkpoints.
        allows_other_values: True to resume a finished run with data of other values, or with fewer epochs, and a
            warning: the user named the run, and no fit of this process has finished it. False to refuse that, as
            where the order of the fits named the run.
        after_another: What to do with a run that another fit has finished: ``"refuse"`` to begin, or ``"start over"``.
    """

    resume: Resume = "auto"
    allows_other_values: bool = True
    after_another: Literal["refuse", "start over"] = "refuse"

    def check(
        self,
        checkpoint: Checkpoint,
        values: Mapping[str, Any],
        saved: Mapping[str, Any] | None,
        live: Mapping[str, Any],
        *,
        epochs: int | None,
    ) -> list[str]:
        """Compare a fit with the one that saved a checkpoint; returns the differences that are no reason to refuse it.

        Args:
            checkpoint: The resume point.
            values: The state of the fit in it.
            saved: The fingerprint in it; None in one that has none.
            live: The fingerprint of the fit that begins.
            epochs: The total number of epochs of the fit that begins; None in a loop that is not Keras' own.

        Raises:
            ModelMismatchError: The architecture, or the optimizer's class, is another; names the first difference.
            RunMismatchError: The run was finished by another fit; names the first difference.
        """
        is_finished = finished.is_finished(
            values, epoch=checkpoint.epoch, in_epoch=checkpoint.batch is not None
        )
        try:
            drift = fingerprint.check(saved, live)
        except ModelMismatchError as error:
            if is_finished and self.after_another == "start over":
                raise RunMismatchError(
                    run=checkpoint.run, where=error.where, in_run=error.in_checkpoint, in_fit=error.in_model
                ) from error
            raise
        if is_finished and saved is not None:
            for found in finished.differences_from(
                values,
                saved,
                live,
                trained=checkpoint.epoch + 1,
                epochs=epochs,
                values_count=not self.allows_other_values,
            ):
                raise RunMismatchError(
                    run=checkpoint.run, where=found.where, in_run=found.in_checkpoint, in_fit=found.in_model
                )
            if epochs is not None and checkpoint.epoch >= epochs:
                drift.append(f"epochs {checkpoint.epoch + 1} -> {epochs}")
        return drift
