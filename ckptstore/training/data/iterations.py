"""Iterations over a tf.data pipeline that an earlier process made, made again: its order depends on their number.

A stage that shuffles has a new order in each iteration, and counts these for all pipelines that are made of it. To
create an iterator is enough to be counted, except where one iteration over the pipeline repeats such a stage, as in
``zip((a, shuffled.repeat()))``: how often it does is only known by reading all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ckptstore.keras.private import repeats_ordered_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Iterations:
    """How often a pipeline was iterated over.

    Attributes:
        created: Number of iterators that were created.
        read: How many of these were read from, to their ends.
    """

    created: int
    read: int

    def __add__(self, other: Iterations) -> Iterations:
        return Iterations(created=self.created + other.created, read=self.read + other.read)

    def __sub__(self, other: Iterations) -> Iterations:
        return Iterations(created=self.created - other.created, read=self.read - other.read)


def must_read(source: Any, iterations: Iterations) -> bool:
    """Return True if iterations over a pipeline are counted only by reading all of its data again.

    Args:
        source: The pipeline.
        iterations: Those to be made again.
    """
    return iterations.read > 0 and repeats_ordered_stage(source)


def make_again(
    source: Any,
    iterations: Iterations,
    create: Callable[[], Iterator[Any]],
    *,
    fills_cache: bool,
    creates_at_once: bool,
) -> None:
    """Make iterations over a pipeline again.

    Args:
        source: The pipeline.
        iterations: Those to be made again.
        create: Creates an iterator over it.
        fills_cache: True if the first iteration filled a cache, in the order that all others have.
        creates_at_once: False if `create` asks for the pipeline's iterator only when a batch is read.
    """
    to_read = iterations.read if must_read(source, iterations) else int(fills_cache)
    for index in range(iterations.created):
        iterator = create()
        if index < to_read:
            deque(iterator, maxlen=0)
        elif not creates_at_once:
            next(iterator, None)
