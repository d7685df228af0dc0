"""Frameworks whose models can be saved, and the adapter module of each.

An adapter is found by name and imported on first use, so that a query does not import a framework. Another framework is
added with one line here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

ADAPTERS = {"keras": "ckptstore.keras.model.adapter"}


def adapter_named(framework: str) -> Any:
    """Return the adapter of a framework, such as ``"keras"``; see `ckptstore.store.model_adapter.ModelAdapter`.

    Raises:
        KeyError: There is no such framework.
    """
    return import_module(ADAPTERS[framework]).adapter
