"""Retention's look-ups of a run, and its records, inside the manifest's transactions.

`run_rows.RunRows` answers a policy's look-ups; `checks` applies its decision; `progress` keeps how far it has come;
`packed_checkpoints` holds very many checkpoints at once. The rules themselves are in `ckptstore.retention`.

May import: errors, records, validation, storage, system, and the modules of `ckptstore.manifest`.
"""
