"""The names of what is measured: works, and who saves and who loads."""

from __future__ import annotations

WORKS = ("large", "small", "digits", "digits long")

FLOORS = ("a look at the model", "memory copy", "memory copy again", "raw write + fsync")
OURS = ("ours background", "ours synchronous", "ours ModelCheckpoint")
# They save nothing, or when they like: there is no single save to be looked at.
RUNS_ONLY = ("ours auto", "ours idle")
KERAS = ("keras .keras", "keras .weights.h5", "keras BackupAndRestore")
ORBAX = ("orbax background", "orbax synchronous")
# In the order of the tables.
SUBJECTS = (*FLOORS, *OURS, *RUNS_ONLY, *KERAS, *ORBAX)
# Those that wait until what they have saved is on the disk.
SYNCED = ("raw write + fsync", *OURS, *RUNS_ONLY, *ORBAX)

LOADERS = (
    "read the file",
    "keras load_weights .keras",
    "keras load_weights .weights.h5",
    "ours restore .keras",
    "ours restore .weights.h5",
    "plain fit to the first batch",
    "ours resume to the first batch",
)
