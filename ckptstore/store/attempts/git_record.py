"""Adds to an attempt what git tells of its code, when git has answered; keeps the difference as a small file."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from ckptstore.errors import CheckpointStoreError
from ckptstore.storage.layout import Layout, diff_file
from ckptstore.storage.output_files import write_file
from ckptstore.system.facts.git import LIMIT_S, GitFacts, GitQuestion

# Where this process has kept a difference: its later attempts have the same.
_kept: dict[tuple[Path, bytes], Path] = {}


class DiffKeeper:
    """Keeps differences in a store, one that is there already only once.

    Args:
        layout: The store's paths.
        before: Where the difference of the attempt before is kept, or None.
    """

    def __init__(self, layout: Layout, before: Path | None) -> None:
        self._layout = layout
        self._before = before

    def known_facts(self, question: GitQuestion) -> dict[Any, Any] | None:
        """Return the facts if git has answered and no file is to be written for them, else None."""
        answer = question.answer()
        if answer is None or (answer.diff and self._found(answer.diff) is None):
            return None
        return self.facts("", 0, answer)

    def facts(self, run: str, attempt: int, answer: GitFacts) -> dict[Any, Any]:
        """Return the facts of an answer, which are none outside of a repository; keeps the difference.

        Args:
            run: The run.
            attempt: The attempt's number.
            answer: Git's answer.
        """
        facts: dict[Any, Any] = {}
        if answer.commit is not None:
            facts |= {"git_commit": answer.commit, "git_dirty": answer.dirty}
        note = answer.note
        if answer.diff:
            try:
                facts["diff"] = self._keep(answer.diff, self._layout.root / diff_file(run, attempt))
            except (CheckpointStoreError, OSError) as error:
                note = f"the difference could not be kept: {error}"
        return facts if note is None else {**facts, "detail": {"git": note}}

    def _found(self, diff: bytes) -> Path | None:
        key = self._layout.root, hashed(diff)
        if key in _kept and _kept[key].exists():
            return _kept[key]
        if self._before is not None:
            with suppress(OSError):
                if self._before.read_bytes() == compressed(diff):
                    return self._before
        return None

    def _keep(self, diff: bytes, path: Path) -> Path:
        found = self._found(diff)
        if found is None:
            write_file(path, compressed(diff), overwrite=True)
            found = path
        _kept[self._layout.root, hashed(diff)] = found
        return found


def compressed(diff: bytes) -> bytes:
    """Return a difference as its file holds it: the same for the same text."""
    return gzip.compress(diff, mtime=0)


def hashed(diff: bytes) -> bytes:
    """Return the digest of a difference."""
    return xxhash.xxh3_128_digest(diff)


class GitRecord:
    """A thread that waits for git, and adds to an attempt what it tells.

    Args:
        question: The question.
        facts: Returns the facts of an answer.
        add: Records facts; an error of ours is ignored: it is reported where something else cannot be recorded.
    """

    def __init__(
        self,
        question: GitQuestion,
        facts: Callable[[GitFacts], dict[Any, Any]],
        add: Callable[[Mapping[Any, Any]], None],
    ) -> None:
        self._question = question
        self._facts = facts
        self._add = add
        self._is_done = False
        self._lock = threading.Lock()
        threading.Thread(target=self._record, name="ckptstore-git-record", daemon=True).start()

    def finish(self, wait_s: float) -> dict[Any, Any]:
        """Return the facts that the thread has not recorded, for the end of the attempt; it records none afterwards.

        Args:
            wait_s: Seconds to wait for git, which is killed then.
        """
        answer = self._question.answer(wait_s)
        if answer is None:
            self._question.give_up()
        with self._lock:
            was_done, self._is_done = self._is_done, True
            if was_done:
                return {}
            if answer is None:
                return {"detail": {"git": "git had not answered when the training ended"}}
            return self._facts(answer)

    def _record(self) -> None:
        answer = self._question.answer(2 * LIMIT_S)
        with self._lock:
            if self._is_done or answer is None:
                return
            self._is_done = True
            try:
                facts = self._facts(answer)
                if facts:
                    self._add(facts)
            except CheckpointStoreError:
                return
