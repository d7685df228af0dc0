"""Random operations of TensorFlow inside compiled steps, with a state that can be read and set.

``tf.random.normal`` and its like keep their position in the kernel of a traced function, where nobody can read it.
While a step is traced, they are replaced by TensorFlow's operations on a variable, which draw the very same numbers:
the same generator (Philox), key and counter (the case `operations_of_tensorflow_that_draw`). So the uninterrupted run
does not change.

Replaced are `tf.random.normal`, `uniform` and `truncated_normal`, and what uses them (dropout, `tf.image`), in steps
that run on a CPU, without XLA, and outside of loops. The names of all others are noted, for a warning at the resume.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
import xxhash

from ckptstore.keras.private.hooks import Hooks
from ckptstore.system import messages

_PHILOX = 1
_MAX_NAMED = 20
# Operation, and the one on a variable that draws the same.
_ON_VARIABLES = {
    "random_standard_normal": "stateful_standard_normal_v2",
    "random_uniform": "stateful_uniform",
    "random_uniform_int": "stateful_uniform_int",
    "truncated_normal": "stateful_truncated_normal",
}
# Operations with a state of their own in their kernels.
_IN_KERNELS = frozenset({
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomShuffle", "Multinomial", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomCrop",
    "UniformCandidateSampler", "LogUniformCandidateSampler", "LearnedUnigramCandidateSampler",
    "FractionalMaxPool", "FractionalAvgPool", "SampleDistortedBoundingBoxV2",
})  # fmt: skip


@dataclass(slots=True)
class _Trace:
    """One trace of a step: its operations with their states, and the names of those whose state cannot be saved."""

    draws: list[tuple[str, Any]] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    begin: list[Any] = field(default_factory=list)
    is_restored: bool = False

    def is_unused(self) -> bool:
        """Return True if none of the operations has drawn yet."""
        import tensorflow as tf

        with tf.init_scope():
            now = [variable.numpy() for _, variable in self.draws]
        return all(map(np.array_equal, now, self.begin))


class StepDraws:
    """The random operations in the compiled steps of one model."""

    def __init__(self) -> None:
        self._traces: dict[str, _Trace] = {}
        self._saved: dict[str, Any] = {}

    @property
    def unsaved(self) -> list[str]:
        """Names of the operations whose state cannot be saved."""
        return [name for trace in self._traces.values() for name in trace.unsaved]

    def states(self) -> dict[str, Any]:
        """Return the states by name; those that were restored and are not traced yet are among them."""
        found = dict(self._saved)
        found |= {name: variable.numpy() for name, variable in self._variables()}
        return found

    def restore(self, states: Mapping[str, Any]) -> None:
        """Set the operations to their states, also those that are traced later."""
        self._saved = {name: np.array(state) for name, state in states.items()}
        for name, variable in self._variables():
            if name in self._saved:
                variable.assign(self._saved[name])

    def _variables(self) -> Iterator[tuple[str, Any]]:
        for where, trace in self._traces.items():
            for index, (operation, variable) in enumerate(trace.draws):
                yield f"{where}/{index}/{operation}", variable

    def step(self, kind: str, original: Callable[..., Any], *, replace: bool) -> Callable[..., Any]:
        """Return a step that is traced with operations on variables."""
        import tensorflow as tf

        @functools.wraps(original)
        def step(*arguments: Any, **keywords: Any) -> Any:
            if tf.executing_eagerly():
                return original(*arguments, **keywords)
            graph = tf.compat.v1.get_default_graph()
            where = _name_of_trace(kind, tf.nest.flatten((arguments, keywords)))
            # A function that creates variables is traced twice, and never runs as it was traced first.
            if where in self._traces and not self._traces[where].is_unused():
                self._saved = {
                    name: state for name, state in self._saved.items() if not name.startswith(where)
                }
            trace = self._traces[where] = _Trace()
            others = any(name.startswith(f"{kind}/") for name in self._saved)
            with self._replaced(graph, trace, where) if replace else _unchanged():
                result = original(*arguments, **keywords)
            trace.unsaved += _in_kernels(graph)
            if others and trace.draws and not trace.is_restored:
                messages.warn(
                    f"the run may not be exact: the random operations of a {kind} step were saved of a step that was "
                    "traced for batches of another shape or type",
                    UserWarning,
                )
            return result

        return step

    @contextmanager
    def _replaced(self, graph: Any, trace: _Trace, where: str) -> Iterator[None]:
        from tensorflow.python.ops import gen_random_ops, gen_stateful_random_ops

        def state_of(operation: str, seed: int, seed2: int) -> Any:
            saved = self._saved.get(f"{where}/{len(trace.draws)}/{operation}")
            trace.is_restored |= saved is not None
            begin = np.array([0, seed2, seed] if saved is None else saved, np.int64)
            variable = _new_variable(begin)
            trace.draws.append((operation, variable))
            trace.begin.append(begin)
            return variable.handle

        hooks = Hooks()
        for name, other in _ON_VARIABLES.items():
            on_variable = getattr(gen_stateful_random_ops, other)
            make = functools.partial(_draw, graph, functools.partial(state_of, name), on_variable)
            hooks.wrap_method(gen_random_ops, name, make)
        try:
            yield
        finally:
            hooks.release()


def _name_of_trace(kind: str, inputs: list[Any]) -> str:
    """Return a name by the inputs' shapes and types, the same in every process."""
    kinds = [f"{getattr(item, 'dtype', '')}{getattr(item, 'shape', '')}" for item in inputs]
    return f"{kind}/{xxhash.xxh3_64_hexdigest(repr(kinds).encode())}"


def _draw(
    graph: Any,
    state_of: Callable[[int, int], Any],
    on_variable: Callable[..., Any],
    original: Callable[..., Any],
) -> Callable[..., Any]:
    import tensorflow as tf

    def draw(
        shape: Any, *arguments: Any, seed: int = 0, seed2: int = 0, name: Any = None, **others: Any
    ) -> Any:
        # Without any seed the kernel draws one, and no two runs are the same. A loop, or a function of the user's, has
        # a graph of its own, whose kernels draw in another order.
        if (seed, seed2) == (0, 0) or tf.compat.v1.get_default_graph() is not graph:
            return original(shape, *arguments, seed=seed, seed2=seed2, name=name, **others)
        return on_variable(state_of(seed, seed2), _PHILOX, shape, *arguments, name=name, **others)

    return draw


def _new_variable(state: Any) -> Any:
    import tensorflow as tf
    from tensorflow.python.ops.resource_variable_ops import ResourceVariable

    # Not tf.Variable, which a traced function takes for one of its own.
    with tf.init_scope():
        return ResourceVariable(state, trainable=False, dtype=tf.int64)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def _in_kernels(graph: Any) -> list[str]:
    """Return the names of the operations of a graph, and of the functions in it, with a seeded state in a kernel."""
    definition = graph.as_graph_def()
    nodes = [
        *definition.node,
        *(node for function in definition.library.function for node in function.node_def),
    ]
    return [
        f"{node.op} ({node.name})"
        for node in nodes
        if node.op in _IN_KERNELS and (node.attr["seed"].i or node.attr["seed2"].i)
    ]


# --- the steps of a model ------------------------------------------------------------------------

_known: WeakKeyDictionary[Any, tuple[Any, StepDraws]] = WeakKeyDictionary()


def generator_of_seeds() -> Any:
    """Return the generator of the seeds of operations that are called outside of functions; None if there is none.

    `tf.random.normal(...)`, say, and `Dataset.shuffle(...)`, which are given no seed of their own, get one from it.
    """
    context: Any = sys.modules.get("tensorflow.python.eager.context")
    if context is None or context.global_seed() is None:
        return None
    return getattr(context.context(), "_rng", None)


class EagerDraws:
    """The random operations of a fit that runs eagerly.

    An operation without a seed gets a new one at each call, see `generator_of_seeds`. One with a seed continues where
    the kernel of that seed stands, which nobody can read: it is noted for a warning at the resume.

    Args:
        hooks: Hold the fit's replaced functions.
    """

    def __init__(self, hooks: Hooks) -> None:
        self.unsaved: list[str] = []
        from tensorflow.python.framework import random_seed

        hooks.wrap_method(random_seed, "get_seed", self._noting_seeds)

    def _noting_seeds(self, original: Callable[..., Any]) -> Callable[..., Any]:
        import tensorflow as tf

        @functools.wraps(original)
        def get_seed(op_seed: Any) -> Any:
            if op_seed is not None and tf.executing_eagerly():
                name = f"an operation that runs eagerly with a seed of its own ({op_seed})"
                if name not in self.unsaved and len(self.unsaved) < _MAX_NAMED:
                    self.unsaved.append(name)
            return original(op_seed)

        return get_seed


@dataclass(slots=True)
class _RunningFit:
    """The random operations of the fit that runs: in compiled steps, or eagerly."""

    draws: StepDraws | None = None
    eager: EagerDraws | None = None


_running = _RunningFit()


def trace_with_states(model: Any, hooks: Hooks) -> None:
    """Have the steps of a fit traced with operations on variables; a step that was traced before stays as it is."""
    _running.draws = _running.eager = None
    if keras.backend.backend() != "tensorflow":
        return
    if getattr(model, "run_eagerly", False):
        _running.eager = EagerDraws(hooks)
        return
    function, draws = _known.get(model, (None, None))
    if function is None or function is not model.train_function:
        draws = _wrapped(model, hooks)
    _running.draws = draws


def _wrapped(model: Any, hooks: Hooks) -> StepDraws | None:
    if type(model).make_train_function is not keras.Model.make_train_function or _is_traced(
        model.train_function
    ):
        return None
    draws = StepDraws()
    replace = _can_replace(model)
    hooks.wrap_method(model, "train_step", lambda original: draws.step("train", original, replace=replace))
    hooks.wrap_method(model, "test_step", lambda original: draws.step("test", original, replace=replace))
    model.make_train_function(force=True)
    if model.test_function is not None and not _is_traced(model.test_function):
        model.make_test_function(force=True)
    _known[model] = model.train_function, draws
    return draws


def _can_replace(model: Any) -> bool:
    import tensorflow as tf

    # The copies of an unrolled step have a kernel each; on a GPU, with XLA or a strategy it was not tried.
    unrolled = min(getattr(model, "unrolled_steps_per_execution", 1), model.steps_per_execution) > 1
    return not (
        unrolled or model.jit_compile or tf.distribute.has_strategy() or tf.config.list_logical_devices("GPU")
    )


def _is_traced(function: Any) -> bool:
    """Return True if a step is traced already, or if that cannot be told."""
    counts = [
        cell.cell_contents.experimental_get_tracing_count()
        for cell in getattr(function, "__closure__", None) or ()
        if hasattr(cell.cell_contents, "experimental_get_tracing_count")
    ]
    return not counts or any(counts)


def step_draws() -> StepDraws | None:
    """Return the random operations in the compiled steps of the running fit, or None."""
    return _running.draws


def eager_draws() -> EagerDraws | None:
    """Return the random operations of the running fit if it runs eagerly on TensorFlow."""
    return _running.eager
