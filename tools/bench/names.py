"""Names of what is measured: workloads, and the subjects that save and load."""

from __future__ import annotations

WORKLOADS = ("large", "small", "sharded", "digits", "digits long", "job", "job data")

FLOORS = ("a look at the model", "memory copy", "memory copy again", "raw write + fsync")
OURS = ("ours background", "ours synchronous", "ours ModelCheckpoint")
# They save nothing, or at times of their own choice, so that single saves cannot be measured.
RUNS_ONLY = ("ours auto", "ours idle")
KERAS = ("keras .keras", "keras .weights.h5", "keras BackupAndRestore")
ORBAX = ("orbax background", "orbax synchronous")
# In the order of the tables.
SUBJECTS = (*FLOORS, *OURS, *RUNS_ONLY, *KERAS, *ORBAX)
# Those that wait until their data is on the disk.
SYNCED = ("raw write + fsync", *OURS, *RUNS_ONLY, *ORBAX)

# Subjects of a job of several processes, in the order of their turns: ours counts rounds itself, so it is the last.
JOB_SUBJECTS = (
    "memory copy again",
    "raw write + fsync",
    "orbax CheckpointManager",
    "orbax background",
    "ours background",
)
# Those of a job that the other workloads do not have come last.
ALL_SUBJECTS = (*SUBJECTS, *(name for name in JOB_SUBJECTS if name not in SUBJECTS))

LOADERS = (
    "read the file",
    "keras load_weights .keras",
    "keras load_weights .weights.h5",
    "ours restore .keras",
    "ours restore .weights.h5",
    "plain fit to the first batch",
    "ours resume to the first batch",
)
