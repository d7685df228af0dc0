"""Private interfaces of Keras, with a fallback for each; all other code uses public Keras or this package.

Tested with Keras 3.12 to 3.15 on JAX, torch and TensorFlow. Each entry below says what a module uses, and what happens
in a Keras that lacks it. `modules` imports Keras' inner modules; a module that is missing is None there.

`saving`, `assets`
    Uses: ``keras.src.saving.saving_lib`` with ``_save_state``, ``_serialize_model_as_json``, ``H5IOStore`` and
    ``DiskIOStore``.
    Fallback: `fallback` saves the model into memory by public Keras and reads it back. That is slower and copies the
    state; one RuntimeWarning says so.
`loading`
    Uses: ``saving_lib._load_state``, ``H5IOStore``, ``DiskIOStore``.
    Fallback: public ``load_weights``; layers' assets are not loaded.
`custom_loading`
    Uses: ``saving_lib._walk_saveable``, ``keras.src.saving.keras_saveable.KerasSaveable``, and ``in_stateless_scope``
    of ``keras.src.backend.common.stateless_scope``.
    Fallback: a model's values are copied before it is loaded into, on backends that need a copy; on torch large arrays
    are copied twice.
`skip_sets`
    Uses: ``saving_lib.get_attr_skipset``, ``keras.src.backend.common.global_state``.
    Fallback: saving and loading are slower.
`optimizers`
    Uses: a model's attributes and ``Layer._layers``, for the optimizers in them; ``inner_optimizer``,
    ``Optimizer._learning_rate``, ``_trainable_variables``, and a replaced ``save_own_variables`` in single objects.
    Fallback: optimizer state is copied; a second optimizer of a model must be built before training.
`legacy_h5`
    Uses: ``keras.src.legacy.saving.legacy_h5_format``, ``Trainer._compile_config.config``.
    Fallback: public ``save_model`` into the open file, without an optimizer that the model does not know.
`global_state`
    Uses: ``keras.src.random.seed_generator``; ``global_seed_generator`` and ``object_name_uids`` of ``global_state``.
    Fallback: that seed is not part of the training state; layers and models that a script makes after its first fit
    have other automatic names than without us.
`messages`
    Uses: ``keras.src.utils.io_utils.print_msg``.
    Fallback: ``print``.
`building`
    Uses: ``Layer._layers``, ``_flatten_layers``; and that functional models, which are built when they are made, have
    ``_operations_by_depth``.
    Fallback: a model that is not built before its first batch is resumed by tracing its training step.
`metrics`
    Uses: ``Metric._direction``, ``Model._compile_metrics``, ``_user_metrics``, ``_user_weighted_metrics``.
    Fallback: the metric's name tells which direction is better, or ``mode`` must be given.
`callback_attributes`
    Uses: attributes of Keras' callbacks that change during a fit, by name; TensorBoard's ``_epoch_start_time``.
    Fallback: `ckptstore.keras.state.callbacks.set_states` names the callback, which starts from zero.
`fit_loop`, `epoch_data`
    Uses: the local variables ``callbacks``, ``epoch_iterator``, ``epochs``, ``initial_epoch``, ``x`` and ``val_x`` of
    ``fit``; ``Model._initial_epoch``, ``train_function``, ``_symbolic_build``, ``_eval_epoch_iterator``;
    ``CallbackList._async_train``, ``_async_test``, ``_executor``, ``_futures``, ``_progbar``, ``_history``;
    ``EpochIterator._enumerate_iterator``, ``_get_iterator``, ``_current_iterator``, ``_steps_seen``, ``_num_batches``,
    ``_distributed_dataset``, ``_one_batch_ahead_iterator`` or ``_prefetch_numpy_iterator``; ``data_adapter`` with the
    names of the adapters' classes, ``_dataset``, ``_dataloader``, ``_first_batches``, ``get_torch_dataloader``,
    ``get_jax_iterator`` and ``enqueuer.ready_queue``; ``tensorflow.python.eager.context.global_seed``.
    Fallback: `running_fit` finds no fit. Callbacks save, and resume at the ends of epochs without the state of other
    callbacks, and a warning says so.
`hooks`
    Uses: ``EpochIterator.catch_stop_iteration``, ``Model.train_function``.
    Fallback: an exception that a script catches is not recorded as the end of its training.
`backends.jax_train_state`
    Uses: ``Callback._model``, ``Model._jax_state``, ``_jax_state_synced``, ``Variable._direct_assign``, ``_value``,
    ``_dtype``.
    Fallback: Keras' own ``Model.jax_state_sync``, which is slower.
`backends.tensorflow_random`
    Uses: ``Model.make_train_function(force=True)`` and the closure of what it makes; TensorFlow's own
    ``gen_random_ops``, ``gen_stateful_random_ops``, ``ResourceVariable``, ``Context._rng``.
    Fallback: steps are traced as they are, and the resume is not exact.
`backends.jax_job`
    Uses: ``jax._src.distributed.global_state`` with ``client``, ``process_id``, ``num_processes`` and
    ``preemption_sync_manager``; of the client ``key_value_set``, ``blocking_key_value_get``, ``key_value_try_get``
    where there is one, ``key_value_dir_get``, ``key_value_delete``. Tested with JAX 0.4.38 and 0.10.2.
    Fallback: the job's processes are counted by public JAX, no messages can be sent, and `Job.lacks_messages` says so.
`backends.torch_job`
    Uses: ``_get_default_store`` of ``torch.distributed.distributed_c10d``. Tested with torch 2.13.
    Fallback: a connection of its own to the store at ``MASTER_ADDR`` and ``MASTER_PORT``; without these as above.
`backends.tensorflow_data`
    Uses: ``Dataset._inputs``, ``Dataset._functions``, ``Dataset.__iter__``, and the names of the classes of stages.
    Fallback: after a resume, shuffled data comes in another order where its order depends on earlier iterations.
`backends.tensorflow_job`
    Uses: ``tensorflow.python.eager.context.context()`` with ``set_config_key_value``, ``get_config_key_value`` and
    ``delete_config_key_value``. Tested with TensorFlow 2.20.
    Fallback: as for JAX.
`user_attributes`
    Uses: ``Layer._flatten_layers``, and the attributes that the methods of Keras' classes
    assign; of torch's modules ``_parameters`` and ``_buffers``.
    Fallback: the layers that are attributes of the model.
`variables`
    Uses: ``Variable._value``; ``Layer._non_trainable_variables``; and that ``Layer.trainable_variables`` selects from
    ``Layer.variables`` by each variable's flag. A model that overrides this is asked itself. A Keras that selects
    differently fails `tests/keras/test_variables.py`.
    Fallback: public ``Variable.value``, which is slower; of replicas, each process saves its frozen weights, too.
`placement`
    Uses: ``Variable._value``; ``Variable._layout``, to which ``Variable._direct_assign`` moves what is assigned, by
    ``keras.src.backend.jax.distribution_lib.distribute_tensor``; and that TensorFlow's ``Variable.assign`` calls
    ``_direct_assign``.
    Fallback: values are moved to their devices once they are assigned; where several processes share a model, a restore
    that builds a part of it, and each under TensorFlow, waits until all processes do so.

Of Keras' private interfaces these use nothing: `capture` (the captured parts of a model, as records), `fallback`, and
`hooks` (wrapped methods of single objects).

May import: distributed, formats, system and the words.
"""

from ckptstore.keras.private.backends.jax_job import is_in_framework, leave_together
from ckptstore.keras.private.backends.jax_train_state import (
    synced,
    synced_train_state,
    unsynced_model,
    wait_for_step,
)
from ckptstore.keras.private.backends.jobs import find_job, messages_of, preemption_signals
from ckptstore.keras.private.backends.tensorflow_data import (
    IterationHook,
    keeps_first_order,
    ordered_stages,
    repeats_ordered_stage,
)
from ckptstore.keras.private.backends.tensorflow_random import eager_draws, generator_of_seeds, step_draws
from ckptstore.keras.private.building import all_layers_built, build_from_record, build_record, trace_step
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
from ckptstore.keras.private.fit_loop import FitLoop, running_fit, running_loop, start_at_epoch
from ckptstore.keras.private.global_state import (
    global_seed,
    name_counters,
    names_kept,
    reset_global_seed,
    set_name_counters,
)
from ckptstore.keras.private.legacy_h5 import save_legacy_h5
from ckptstore.keras.private.loading import load_variables
from ckptstore.keras.private.messages import print_message
from ckptstore.keras.private.metrics import logs_mean_loss, metric_directions
from ckptstore.keras.private.optimizers import (
    build_optimizer,
    builds_in_scope,
    optimizers_of,
    schedule_of,
    variables_trained_by,
)
from ckptstore.keras.private.placement import (
    kept_placements,
    own_replicas,
    placed_alone,
    sharding_across_processes,
)
from ckptstore.keras.private.saving import NoConfigurationError, capture_model, config_documents
from ckptstore.keras.private.user_attributes import (
    is_keras_object,
    layers_of,
    names_read_by,
    user_attributes,
)
from ckptstore.keras.private.variables import (
    raw_values,
    untracked_variables,
    untrained_variables,
    uses_trainable_flags,
    variables_by_kind,
)

__all__ = [
    "EpochData",
    "FitLoop",
    "IterationHook",
    "NoConfigurationError",
    "all_layers_built",
    "build_from_record",
    "build_optimizer",
    "build_record",
    "builds_in_scope",
    "capture_model",
    "config_documents",
    "copies_on_assign",
    "eager_draws",
    "find_job",
    "generator_of_seeds",
    "global_seed",
    "has_custom_loading",
    "is_in_framework",
    "is_keras_class",
    "is_keras_object",
    "keeps_first_order",
    "kept_placements",
    "layers_of",
    "leave_together",
    "load_variables",
    "logs_mean_loss",
    "messages_of",
    "metric_directions",
    "name_counters",
    "names_kept",
    "names_read_by",
    "optimizers_of",
    "ordered_stages",
    "own_replicas",
    "placed_alone",
    "preemption_signals",
    "print_message",
    "raw_values",
    "repeats_ordered_stage",
    "reset_global_seed",
    "restart_validation_data",
    "run_time_attributes",
    "running_fit",
    "running_loop",
    "save_legacy_h5",
    "schedule_of",
    "set_attribute",
    "set_name_counters",
    "sharding_across_processes",
    "start_at_epoch",
    "start_epoch_clock",
    "step_draws",
    "synced",
    "synced_train_state",
    "trace_step",
    "unsynced_model",
    "untracked_variables",
    "untrained_variables",
    "user_attributes",
    "uses_trainable_flags",
    "validation_iterator_count",
    "validation_leaves_batches",
    "variables_by_kind",
    "variables_trained_by",
    "wait_for_step",
]
