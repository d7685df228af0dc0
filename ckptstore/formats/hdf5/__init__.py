"""HDF5 container format, written and read here byte by byte.

libhdf5 crashes on a full disk, and damaged bytes must not reach it. Main doors: `writer` and `reader`. `dtypes`,
`string_heap`, `text_reader` and `dense_links` are parts of the file format; `metadata` bounds what reading it costs.
Knows nothing of payloads.

May import: errors, storage, system.
"""
