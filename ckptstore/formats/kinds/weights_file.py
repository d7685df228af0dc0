"""The format ``weights``: a ``.weights.h5`` file, which plain Keras loads into a model of the same architecture."""

from __future__ import annotations

from ckptstore.formats.kinds.hdf5_format import Hdf5Format
from ckptstore.records import Format
from ckptstore.storage.payloads.names import SUFFIXES


class WeightsFile(Hdf5Format):
    """Weights, and optimizer where it is saved, by their paths in the model."""

    name: Format = "weights"
    suffix = SUFFIXES["weights"]
    run_suffix = "-weights"
    noun = "a .weights.h5 file"
    is_whole_model = False
    loading_code = 'model.load_weights("{file}")  # of a model built as it was'
    exports_as: tuple[Format, ...] = ("weights",)


FORMAT = WeightsFile()
