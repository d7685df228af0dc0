"""The format ``h5``: Keras' older file of a whole model, which only Keras' own code lays out."""

from __future__ import annotations

from ckptstore.formats.kinds.hdf5_format import Hdf5Format
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES


class WholeModelH5(Hdf5Format):
    """A whole model; libhdf5 makes it in memory, since it must not meet a full disk."""

    name: Format = "h5"
    suffix = SUFFIXES["h5"]
    run_suffix = "-h5"
    noun = "Keras' older .h5 file"
    is_whole_model = True
    allows_weights_only = False
    keras_fills_it = True
    matches_by_order = True
    loading_code = 'model = keras.saving.load_model("{file}")'
    exports_as: tuple[Format, ...] = ("h5",)


FORMAT = WholeModelH5()
