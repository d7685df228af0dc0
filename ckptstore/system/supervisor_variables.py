"""Names of the environment variables by which a supervisor tells the command that it starts of itself."""

from __future__ import annotations

# A name of this start of the command, which its attempts record.
SUPERVISOR_VARIABLE = "CKPTSTORE_SUPERVISOR"
# The absolute path of the file that the command's output goes to.
LOG_VARIABLE = "CKPTSTORE_LOG"
