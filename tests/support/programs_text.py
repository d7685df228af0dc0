"""Programs after examples of text, generation, audio and time series.

Also which example each stands for, and for which there is none.
"""

from __future__ import annotations

from program import Program

PROGRAMS: dict[str, Program] = {}
# By the path in keras.io's examples or guides, without suffix.
EXAMPLES: dict[str, str] = {}
# With the reason.
NO_PROGRAM: dict[str, str] = {}
