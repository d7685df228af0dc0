"""The payload formats, a module for each: `keras_archive`, `weights_file`, `whole_model_h5`, `sharded`.

Main doors: the one object of each module, by way of `ckptstore.formats.registry`. Part: `hdf5_format` (what formats
around an HDF5 file share).

May import: errors, records, storage, system, and the rest of formats but for `registry` and `payload`, which ask this
room.
"""
