"""Failed saves are retried and warned of; training continues, and ends after several failures in a row."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ckptstore.commit import retry
from ckptstore.errors import (
    DiskFullError,
    InvalidArgumentError,
    ModelNotReadyError,
    RunLockedError,
    SaveEndUnknownError,
    StorageError,
    StoreLockedError,
    UnfinishedSaveError,
)
from ckptstore.training.saving.arguments import check_on_save_error
from ckptstore.training.saving.failures import SaveFailures

FULL = DiskFullError(path=Path("/runs/x"), needed=10, free=1)
BROKEN = StorageError(operation="fsync", path=Path("/runs/x"), error=OSError(errno.EIO, "Input/output error"))
BUSY = StoreLockedError(path=Path("/runs/locks/store.lock"), waited_s=60)


class Saving:
    """Raises one of the given errors a call; None is a save that works."""

    def __init__(self, outcomes: Iterable[Exception | None]) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        error = self.outcomes.pop(0) if self.outcomes else None
        if error is not None:
            raise error
        return "saved"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("error", [FULL, BROKEN, BUSY], ids=lambda error: type(error).__name__)
def test_a_failure_that_passes_is_not_noticed(error: Exception, waits: list[float]) -> None:
    saving = Saving([error, error, None])
    assert SaveFailures("raise", 3).attempt(saving) == "saved"
    assert saving.calls == 3 and waits == list(retry.DELAYS_S)


def test_a_save_whose_end_is_unknown_is_not_called_unsaved() -> None:
    failures = SaveFailures("warn", 3)
    unknown = SaveEndUnknownError(process=1, save=2, version=2, limit_s=120.0)
    with pytest.warns(UserWarning, match="not known here if this checkpoint was saved; training") as caught:
        assert failures.count(None, unknown) is None
    assert "was not saved" not in str(caught[0].message)
    assert failures.in_a_row == 1


def test_training_continues_with_a_warning(waits: list[float]) -> None:
    failures = SaveFailures("warn", 3)
    with pytest.warns(
        UserWarning, match=r"SAVING FAILED \(1 in a row; 2 more will end the training\).*10 bytes"
    ) as warned:
        assert failures.attempt(Saving([FULL] * 3)) is None
    assert len(warned) == 1 and sum(waits) < 2


def test_too_many_in_a_row_end_it() -> None:
    failures = SaveFailures("warn", 2)
    with pytest.warns(UserWarning, match="SAVING FAILED"):
        failures.attempt(Saving([FULL] * 3))
    failures.attempt(Saving([]))
    with pytest.warns(UserWarning, match="SAVING FAILED"):
        failures.attempt(Saving([FULL] * 3))
    with pytest.raises(DiskFullError) as caught:
        failures.attempt(Saving([FULL] * 3))
    assert caught.value.__notes__ == ["2 saves in a row have failed"]
    del FULL.__notes__


def test_a_process_that_does_not_decide_warns_and_goes_on() -> None:
    for answer, most in (("warn", 1), ("raise", 3)):
        failures = SaveFailures(answer, most)
        failures.may_end = False
        for _ in range(2):
            with pytest.warns(UserWarning, match=r"^SAVING FAILED: this checkpoint was not saved"):
                assert failures.count(None, FULL) is None


def test_raise_means_at_once_after_the_tries() -> None:
    saving = Saving([BROKEN] * 9)
    with pytest.raises(StorageError, match="fsync"):
        SaveFailures("raise", 3).attempt(saving)
    assert saving.calls == 3


@pytest.mark.parametrize(
    "error",
    [
        ModelNotReadyError(model="m", missing="built", hint="build it"),
        RunLockedError(run="a", store=Path("/x")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_permanent_errors_are_raised_at_once(error: Exception) -> None:
    saving = Saving([error])
    with pytest.raises(type(error)):
        SaveFailures("warn", 9).attempt(saving)
    assert saving.calls == 1


def test_a_checkpoint_that_is_not_shown_is_a_checkpoint() -> None:
    from records import CHECKPOINT

    unfinished = UnfinishedSaveError(checkpoint=CHECKPOINT, undone="showing it", error=BROKEN)
    unfinished.__cause__ = BROKEN
    saving = Saving([unfinished])
    failures = SaveFailures("warn", 2)
    with pytest.warns(UserWarning, match="version 7 is saved, but showing it failed"):
        assert failures.attempt(saving) is CHECKPOINT
    assert saving.calls == 1
    with pytest.raises(UnfinishedSaveError):
        failures.attempt(Saving([unfinished]))


def test_removals_that_fail_behind_their_saves_are_failures_in_a_row() -> None:
    from records import CHECKPOINT

    unfinished = UnfinishedSaveError(checkpoint=CHECKPOINT, undone="removing", error=BROKEN)
    unfinished.__cause__ = BROKEN
    failures = SaveFailures("warn", 2)
    failures.count(CHECKPOINT, None)
    with pytest.warns(UserWarning, match="1 in a row"):
        failures.count_removal(unfinished)
    failures.count(CHECKPOINT, None)
    with pytest.raises(UnfinishedSaveError):
        failures.count_removal(unfinished)


@pytest.mark.parametrize(
    ("what", "most"), [("ignore", 3), (None, 3), ("warn", 0), ("warn", True), ("warn", "3")]
)
def test_bad_arguments(what: Any, most: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        check_on_save_error(what, most)


def test_a_policy_that_raises_ends_the_training_at_once() -> None:
    from records import CHECKPOINT

    unfinished = UnfinishedSaveError(checkpoint=CHECKPOINT, undone="retention", error=KeyError("policy"))
    unfinished.__cause__ = KeyError("policy")
    with pytest.raises(UnfinishedSaveError, match="fix the cause"):
        SaveFailures("warn", 3).attempt(Saving([unfinished]))
