"""The type of a host array, as rooms hand it to each other."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
