"""Stages of a tf.data pipeline, and what they tell about the order of its data.

`Dataset._inputs`, `Dataset._functions` and the graphs of these were tried with TensorFlow 2.20. Without them, no stage
is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

# Operations of TensorFlow that change a variable.
_ASSIGN = frozenset({
    "AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp", "RngReadAndSkip", "StatefulStandardNormalV2",
    "StatefulUniform", "StatefulUniformFullInt", "StatefulUniformInt", "StatefulTruncatedNormal",
})  # fmt: skip


def keeps_first_order(dataset: Any) -> bool:
    """Return True if a tf.data pipeline caches what it has shuffled: later iterations have the order of the first."""
    if type(dataset).__name__ == "CacheDataset":
        return bool(ordered_stages(dataset))
    return any(map(keeps_first_order, _inputs_of(dataset)))


def ordered_stages(dataset: Any) -> dict[int, Any]:
    """Return the stages of a tf.data pipeline whose order depends on how often they were iterated over, by their ids.

    All pipelines that are made of such a stage share its count. Other stages, also those that draw random numbers in a
    ``map``, begin anew in each iteration (tried with TensorFlow 2.20).
    """
    found = {id(dataset): dataset} if "Shuffle" in type(dataset).__name__ else {}
    for source in _inputs_of(dataset):
        found |= ordered_stages(source)
    return found


def repeats_ordered_stage(dataset: Any) -> bool:
    """Return True if one iteration over a tf.data pipeline may iterate several times over a stage that shuffles."""
    if "Repeat" in type(dataset).__name__:
        return bool(ordered_stages(dataset))
    return any(map(repeats_ordered_stage, _inputs_of(dataset)))


class IterationHook:
    """Calls a function with each tf.data pipeline that is about to be iterated over in the process.

    Args:
        before: The function.
    """

    def __init__(self, before: Callable[[Any], None]) -> None:
        self._before = before
        self._replaced: tuple[Any, Any, Any] | None = None

    def install(self) -> None:
        """Begin to call the function; may be called again."""
        tensorflow: Any = sys.modules.get("tensorflow")
        if self._replaced is not None or tensorflow is None:
            return
        pipelines, create, before = tensorflow.data.Dataset, tensorflow.data.Dataset.__iter__, self._before

        @wraps(create)
        def settle_and_create(dataset: Any) -> Any:
            if tensorflow.executing_eagerly():
                before(dataset)
            return create(dataset)

        self._replaced = pipelines, create, settle_and_create
        pipelines.__iter__ = settle_and_create

    def remove(self) -> None:
        """Restore what was there before, unless others have replaced it since; may be called again."""
        if self._replaced is not None:
            pipelines, create, ours = self._replaced
            self._replaced = None
            if pipelines.__iter__ is ours:
                pipelines.__iter__ = create


def _inputs_of(dataset: Any) -> list[Any]:
    inputs = getattr(dataset, "_inputs", None)
    return list(inputs()) if callable(inputs) else []


def changes_variables(dataset: Any) -> bool:
    """Return True if a function in a tf.data pipeline assigns to a variable."""
    functions = getattr(dataset, "_functions", None)
    if not callable(functions):
        return False
    graphs = (getattr(getattr(item, "function", None), "graph", None) for item in functions())
    return any(graph is not None and _assigns(graph.as_graph_def()) for graph in graphs) or any(
        map(changes_variables, _inputs_of(dataset))
    )


def _assigns(definition: Any) -> bool:
    parts = (definition.node, *(function.node_def for function in definition.library.function))
    return any(node.op in _ASSIGN for nodes in parts for node in nodes)
