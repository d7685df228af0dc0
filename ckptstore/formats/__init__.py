"""Payload formats: how a checkpoint's bytes are written, read, verified and copied; each behind one interface.

Main doors: `payload_format` (the interface), `registry` (the formats, by name, file name and content), `snapshot` (the
arrays and documents of a payload), `payload` (what other rooms use: encode, open, verify, decode). The formats
themselves are in `kinds`. Parts: `description` (the JSON inside a payload), `streamed_hdf5` and `in_memory_hdf5` (two
ways to the HDF5 file), `hdf5_payload`, `contents`, `verify`, `decode` and `copy` (back from it), `sink`, `safetensors`.
Containers: `hdf5`, `zip_writer`, `zip_reader`. `sharded` is for
payloads that several processes write.

May import: errors, records, storage, system.
"""
