"""Tests that the guide's training loops for torch and JAX, killed and started again, end as if they were not."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import keras
import pytest

import page_examples
from loop_runs import runs_of

BACKEND = keras.backend.backend()
PROGRAMS = {"torch": ["runs/torch", "runs/parallel"], "jax": ["runs/jax"]}
NEEDS = {"runs/torch": "torchdata", "runs/parallel": "torch", "runs/jax": "optax"}


def _program(store: str) -> str:
    texts = [path.read_text(encoding="utf-8") for path in page_examples.pages().values()]
    blocks = [block.code for text in texts for block in page_examples.blocks(text, "py")]
    [program] = [code for code in blocks if f'"{store}"' in code]
    return program


@pytest.mark.skipif(BACKEND not in PROGRAMS, reason="the guide has loops of torch and of JAX")
@pytest.mark.parametrize("store", PROGRAMS.get(BACKEND, []))
def test_a_loop_of_the_guide_that_is_killed_ends_as_if_it_was_not(store: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDS[store]) is None:
        pytest.skip(f"needs {NEEDS[store]}")
    whole, first, second, last = runs_of(_program(store), tmp_path, BACKEND)
    assert whole["status"] == last["status"] == 0, (whole, last)
    assert first["status"] == second["status"] == -signal.SIGKILL, (first, second)
    assert whole["resumed"] is None
    assert last["resumed"] is not None
    # Each run did a part of the work; what it does to begin counts too.
    assert last["resumed"] > 1
    assert last["steps"] < whole["steps"] * (2 / 3 if store == "runs/parallel" else 1 / 2)
    assert last["digests"] == whole["digests"]
