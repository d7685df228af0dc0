"""Payload files: how a checkpoint's bytes are written, read, verified and copied.

Main doors: `payload` (write and describe), `reader` (read back), `verify` (digests), `decode` (variables and training
state of a payload), `copy`. The container formats lie in `hdf5` and in `zip_writer` / `zip_reader`.

May import: errors, records, storage, system.
"""
