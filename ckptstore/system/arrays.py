"""The type of host arrays, as rooms pass them to each other."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
