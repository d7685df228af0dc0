"""The frameworks whose models can be saved, and the module that adapts each.

An adapter is found by name and imported on first use: asking the manifest costs no framework's import, and another
framework joins with one line here.
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
