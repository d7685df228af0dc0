"""What Keras does not promise and ckptstore uses: every private name, and the fallback in a Keras that lacks it.

Everything outside of this package uses public Keras, or what is here. Tested on Keras 3.12 to 3.15, on JAX, torch and
TensorFlow. "None" is said of a module below that `modules` could not import.

- `saving`: ``keras.src.saving.saving_lib``, of it ``_save_state``, ``_serialize_model_as_json``, ``H5IOStore``; and
  `assets`: ``DiskIOStore``. Lacking: the model is saved publicly into memory and read back (`fallback`), slower and
  with a copy of the state, and one RuntimeWarning says so.
- `loading`: ``saving_lib._load_state``, ``H5IOStore``, ``DiskIOStore``. None: public ``load_weights``; assets stay.
- `custom_loading`: ``saving_lib._walk_saveable``, ``keras.src.saving.keras_saveable.KerasSaveable``. Lacking: before a
  model is loaded into, what it holds is copied, where the backend asks for a copy. And ``in_stateless_scope`` of
  ``keras.src.backend.common.stateless_scope``. Lacking: on torch large arrays are copied twice.
- `skip_sets`: ``saving_lib.get_attr_skipset``, ``keras.src.backend.common.global_state``. Lacking: slower, no more.
- `optimizers`: attributes of a model that are optimizers, ``inner_optimizer``, ``Optimizer._trainable_variables``, and
  ``save_own_variables`` overlaid in one object. Lacking: arrays that are copies; a second optimizer of a model must be
  built before training.
- `legacy_h5`: ``keras.src.legacy.saving.legacy_h5_format``, ``Trainer._compile_config.config``. None: public
  ``save_model`` into the open file, without an optimizer that the model does not know.
- `global_seed`: ``keras.src.random.seed_generator``, ``global_state``'s ``global_seed_generator``. None: that seed is
  not part of the training state.
- `messages`: ``keras.src.utils.io_utils.print_msg``. None: ``print``.
- `metrics`: ``Metric._direction``, ``Model._compile_metrics``, ``_user_metrics``, ``_user_weighted_metrics``. Lacking:
  the name tells which way is better, or ``mode`` must be given.
- `callback_attributes`: what Keras' callbacks learn during a fit, by name. Lacking:
  `ckptstore.keras.state.callbacks.set_states` names the callback, which begins anew.
- `fit_loop`: the local variables of ``fit`` (``callbacks``, ``epoch_iterator``, ``epochs``, ``initial_epoch``, ``x``,
  ``val_x``), ``Model._initial_epoch``, ``train_function``, ``_symbolic_build``, ``CallbackList._async_train``,
  ``_async_test``, ``_executor``, ``_futures``, ``_progbar``, ``_history``; and `epoch_data`:
  ``EpochIterator._enumerate_iterator``, ``_get_iterator``, ``_current_iterator``, ``_steps_seen``, ``_num_batches``,
  ``_distributed_dataset``, ``Model._eval_epoch_iterator``, ``_one_batch_ahead_iterator`` or
  ``_prefetch_numpy_iterator``, ``data_adapter`` with the names of the adapters' classes, ``_dataloader``,
  ``get_torch_dataloader``, ``get_jax_iterator`` and ``enqueuer.ready_queue``; on TensorFlow its own
  ``tensorflow.python.eager.context.global_seed``. Lacking: `fit_loop.running_fit` finds no fit; callbacks save, and
  resume at the ends of epochs, without the others' state, and a warning says so.
- `jax_train_state`: ``Callback._model``, ``Model._jax_state``, ``_jax_state_synced``, ``Variable._direct_assign``,
  ``_value``, ``_dtype``. Lacking: Keras' own ``Model.jax_state_sync``, slower.
- `variables`: ``Variable._value``. Lacking: ``Variable.value``, slower. And that ``Layer.trainable_variables`` picks
  from ``Layer.variables`` by each one's flag; a model with an answer of its own is asked, and a Keras that picked
  otherwise would fail `tests/keras/test_variables.py`.
- `hooks`: nothing of Keras; how methods of single objects are overlaid.

May import: formats, system and the words.
"""

from ckptstore.keras.private.callback_attributes import (
    is_keras_class,
    run_time_attributes,
    set_attribute,
    start_epoch_clock,
)
from ckptstore.keras.private.custom_loading import copies_on_assign, has_custom_loading
from ckptstore.keras.private.epoch_data import (
    EpochData,
    restart_validation_data,
    validation_iterator_count,
    validation_leaves_batches,
)
from ckptstore.keras.private.fit_loop import FitLoop, running_fit, start_at_epoch
from ckptstore.keras.private.global_seed import global_seed, reset_global_seed
from ckptstore.keras.private.jax_train_state import synced_train_state, wait_for_step
from ckptstore.keras.private.legacy_h5 import save_legacy_h5
from ckptstore.keras.private.loading import load_variables
from ckptstore.keras.private.messages import print_message
from ckptstore.keras.private.metrics import metric_directions
from ckptstore.keras.private.optimizers import optimizers_of, variables_trained_by
from ckptstore.keras.private.saving import capture_model, config_documents
from ckptstore.keras.private.variables import raw_values, uses_trainable_flags, variables_by_kind

__all__ = [
    "EpochData",
    "FitLoop",
    "capture_model",
    "config_documents",
    "copies_on_assign",
    "global_seed",
    "has_custom_loading",
    "is_keras_class",
    "load_variables",
    "metric_directions",
    "optimizers_of",
    "print_message",
    "raw_values",
    "reset_global_seed",
    "restart_validation_data",
    "run_time_attributes",
    "running_fit",
    "save_legacy_h5",
    "set_attribute",
    "start_at_epoch",
    "start_epoch_clock",
    "synced_train_state",
    "uses_trainable_flags",
    "validation_iterator_count",
    "validation_leaves_batches",
    "variables_by_kind",
    "variables_trained_by",
    "wait_for_step",
]
