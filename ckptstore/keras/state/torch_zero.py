"""State of torch's `ZeroRedundancyOptimizer`, which is divided over the processes: each saves and loads its own part.

Its own ``state_dict`` needs a collective operation before it, and brings all of the state into one process. The parts
need none: what is loaded is what the same number of processes has saved.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def is_divided(value: Any) -> bool:
    """Return True for a `ZeroRedundancyOptimizer`, unless it overlaps with DDP and has made no step.

    Example:
        >>> is_divided({"weights": 1})
        False
    """
    kind = getattr(sys.modules.get("torch.distributed.optim"), "ZeroRedundancyOptimizer", None)
    return kind is not None and isinstance(value, kind) and value.optim is not None


def held_by(optimizer: Any) -> set[int]:
    """Return the ids of the parameters that this process updates by an optimizer of torch: of an undivided one, all."""
    own = optimizer.optim if is_divided(optimizer) else optimizer
    return {id(parameter) for group in own.param_groups for parameter in group["params"]}


def state_of(divided: Any) -> dict[str, Any]:
    """Return the state of this process's part, with the settings that its next step will use."""
    state: dict[str, Any] = divided.optim.state_dict()
    groups = [
        group | _settings(shown)
        for group, shown in zip(state["param_groups"], divided.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


def load(divided: Any, state: Mapping[str, Any]) -> None:
    """Load the state of this process's part.

    Raises:
        ValueError: It is that of another number of parameters.
    """
    divided.optim.load_state_dict(state)
    for shown, group in zip(divided.param_groups, divided.optim.param_groups, strict=True):
        shown.update(_settings(group))


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
