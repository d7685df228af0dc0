"""Payload files: how a checkpoint's bytes are written, read, verified and copied.

Main doors: `snapshot` (the arrays and documents of a payload), `payload` (encode one, and the readers that other rooms
use), `verify` (check against digests), `decode` (a payload back into a snapshot), `copy` (bytes of a payload, checked).
Parts: `description` (the JSON inside a payload), `streamed_hdf5` and `in_memory_hdf5` (two ways to the HDF5 file),
`contents` and `reader` (what a file holds), `safetensors`. Containers: `hdf5`, `zip_writer`, `zip_reader`.

May import: errors, records, storage, system.
"""
