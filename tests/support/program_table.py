"""The programs in tests/programs, and the examples of keras.io that each stands for."""

from __future__ import annotations

import programs_structured
import programs_text
import programs_vision
from program import AS_WEIGHTS, EVERY, Program

_FIRST: dict[str, Program] = {
    "actor_critic_tensorflow": Program(
        kind="actor-critic by hand",
        compares=("model", "optimizer", "running_reward"),
        backends=("tensorflow",),
    ),
    "augmentation_in_dataset": Program(kind="augmentation in a PyDataset"),
    # Batches draw side by side, so that two plain runs differ.
    "augmentation_in_pipeline_tensorflow": Program(
        kind="augmentation in tf.data",
        backends=("tensorflow",),
        says={"tensorflow": ("a function of the tf.data pipeline changes variables",)},
        compares=("labels",),
        inexact=("tensorflow",),
    ),
    "autoencoder_denoising": Program(kind="autoencoder, two fits"),
    "autoencoder_without_call_torch": Program(kind="no call", backends=("torch",)),
    "callbacks_with_state": Program(kind="own callbacks with state"),
    "callbacks_without_get_state": Program(
        kind="own callbacks, state not given",
        says=dict.fromkeys(EVERY, ("start again without their state: WarmUpCosine, StopAtMinimum",)),
        inexact=EVERY,
    ),
    "convnet_augmentation": Program(kind="augmentation, convolutions"),
    "cyclegan_tensorflow": Program(
        kind="CycleGAN, four optimizers", backends=("tensorflow",), says=AS_WEIGHTS
    ),
    "dataset_with_workers": Program(kind="PyDataset with workers"),
    "dcgan_tensorflow": Program(
        kind="GAN, two optimizers",
        backends=("tensorflow",),
        says={
            "tensorflow": ("is not serialisable as a whole", "start again without their state: GANMonitor")
        },
    ),
    "dcgan_torch": Program(kind="GAN, two optimizers", backends=("torch",), says=AS_WEIGHTS),
    "deep_q_learning": Program(kind="deep Q-learning by hand", compares=("model", "target", "epsilon")),
    "diffusion_tensorflow": Program(
        kind="diffusion, average of weights, tf.random", backends=("tensorflow",)
    ),
    "diffusion_torch": Program(kind="diffusion, average of weights", backends=("torch",)),
    "digits_mlp": Program(kind="dense, stops early, plateaus", quick=EVERY),
    "distillation": Program(kind="distillation", says=AS_WEIGHTS),
    "drop_in_callbacks": Program(kind="ModelCheckpoint and BackupAndRestore"),
    "epoch_by_epoch": Program(kind="a fit for each epoch"),
    "feature_space_tensorflow": Program(kind="FeatureSpace, tf.data", backends=("tensorflow",)),
    "fine_tuning_stages": Program(kind="frozen, thawed, LoRA, quantized"),
    "float8": Program(kind="float8"),
    "forward_forward_tensorflow": Program(
        kind="optimizers in layers", backends=("tensorflow",), says=AS_WEIGHTS
    ),
    "gan_train_on_batch": Program(
        kind="GAN by train_on_batch", compares=("combined", "generator", "optimizers")
    ),
    "graph_network": Program(kind="graph network", says=AS_WEIGHTS),
    "images_in_folders_tensorflow": Program(kind="pictures in folders", backends=("tensorflow",)),
    "imbalanced": Program(kind="class and sample weights"),
    "keras_distiller": Program(kind="Keras' Distiller"),
    "keras_tuner_search": Program(
        kind="Keras Tuner",
        needs="keras_tuner",
        compares=("scores",),
        says=dict.fromkeys(EVERY, ("start again without their state: SaveBestEpoch",)),
    ),
    "kfold": Program(kind="k-fold loop"),
    "loop_by_hand_jax": Program(kind="loop by hand", compares=("model", "optimizer"), backends=("jax",)),
    "loop_by_hand_tensorflow": Program(
        kind="loop by hand", compares=("model", "optimizer"), backends=("tensorflow",)
    ),
    "loop_by_hand_torch": Program(
        kind="loop by hand, torch optimizer", compares=("model", "optimizer", "rate"), backends=("torch",)
    ),
    "lora": Program(kind="LoRA after a full fit"),
    "masked_padding": Program(kind="masked padding, bidirectional"),
    "miniature_gpt": Program(kind="language model, generates text"),
    "mixed_precision": Program(kind="mixed precision"),
    "mixture_of_experts": Program(kind="mixture of experts"),
    "more_epochs_later": Program(kind="two fits, initial_epoch"),
    "nnclr_tensorflow": Program(kind="queue in a tf.Variable", backends=("tensorflow",)),
    "nnclr_torch": Program(kind="queue in a tensor", backends=("torch",)),
    "optimizer_options": Program(kind="accumulation, clipping, averages"),
    "optuna_study": Program(kind="Optuna", needs="optuna", compares=("values",)),
    "own_metrics_and_losses": Program(
        kind="own metric, add_loss, endpoint layer", backends=("torch", "tensorflow")
    ),
    "own_optimizer": Program(kind="own optimizers, two runs"),
    "preprocessing_in_pipeline_tensorflow": Program(
        kind="preprocessing layers in tf.data", backends=("tensorflow",)
    ),
    "python_generator": Program(kind="Python generator"),
    "recommender": Program(kind="recommender, built by its first batch", says=AS_WEIGHTS),
    "seq2seq_lstm": Program(kind="sequence to sequence"),
    "several_steps_at_once": Program(kind="steps_per_execution, run_eagerly", backends=("jax", "tensorflow")),
    "shared_pipelines_tensorflow": Program(
        kind="four fits, tf.data that shuffles",
        backends=("tensorflow",),
        says=AS_WEIGHTS,
        quick=("tensorflow",),
    ),
    "siamese_contrastive": Program(kind="siamese"),
    "simclr_tensorflow": Program(kind="SimCLR, probe, two optimizers", backends=("tensorflow",)),
    "sklearn_cross_validation": Program(kind="scikit-learn", needs="sklearn", compares=("scores",)),
    "sklearn_metric_callback": Program(kind="callback that writes logs"),
    "speech_ctc": Program(kind="CTC, callback that predicts"),
    "stateful_nested": Program(kind="stateful, nested, own cells", backends=("jax", "tensorflow")),
    "structured_data": Program(kind="preprocessing layers"),
    "super_resolution": Program(
        kind="super-resolution, callback with lists",
        says=dict.fromkeys(EVERY, ("start again without their state: ESPCNCallback",)),
        inexact=EVERY,
    ),
    "supervised_contrastive": Program(kind="contrastive, then a classifier"),
    "terminate_on_nan": Program(kind="TerminateOnNaN"),
    # Not its score at the end, over data that is shuffled again for each pass.
    "text_classification_tensorflow": Program(
        kind="TextVectorization, tf.data", backends=("tensorflow",), compares=("model", "history")
    ),
    "text_transformer": Program(kind="transformer from layers"),
    "tf_data_mixup": Program(kind="MixUp in tf.data", backends=("tensorflow",)),
    "timeseries_stateful": Program(kind="stateful recurrent, reset_states", backends=("jax", "tensorflow")),
    "timeseries_tensorflow": Program(kind="windows by tf.data", backends=("tensorflow",)),
    "torch_data_loader": Program(kind="torch DataLoader", backends=("jax", "torch"), needs="torch"),
    "torch_module": Program(kind="TorchModuleWrapper", backends=("torch",)),
    "train_on_batch_loop": Program(kind="train_on_batch by hand", compares=("weights", "optimizer")),
    "train_step_jax": Program(kind="own train_step", backends=("jax",)),
    "train_step_tensorflow": Program(kind="own train_step", backends=("tensorflow",)),
    "train_step_torch": Program(kind="own train_step", backends=("torch",)),
    "transfer_learning": Program(kind="fine-tuning in stages"),
    "tuner_by_deepcopy": Program(kind="tuner-like copies"),
    "two_inputs_three_outputs": Program(kind="several inputs and outputs"),
    "unet_segmentation": Program(kind="U-net, PyDataset, best only"),
    "vae_add_loss": Program(kind="VAE by add_loss", says=AS_WEIGHTS),
    # Not its History and metrics: the last bit of a sum of losses depends on TensorFlow's threads (guide, page exact).
    "vae_tensorflow": Program(
        kind="VAE without call", backends=("tensorflow",), compares=("encoder", "decoder"), says=AS_WEIGHTS
    ),
    "vq_vae": Program(kind="VQ-VAE"),
    "wgan_gp_torch": Program(kind="WGAN-GP, critic steps", backends=("torch",), says=AS_WEIGHTS),
}
PROGRAMS: dict[str, Program] = dict(
    sorted(
        (_FIRST | programs_vision.PROGRAMS | programs_text.PROGRAMS | programs_structured.PROGRAMS).items()
    )
)
# Examples of keras.io by their path without suffix, each with the program that stands for it.
EXAMPLES: dict[str, str] = programs_vision.EXAMPLES | programs_text.EXAMPLES | programs_structured.EXAMPLES
# Examples that no program can stand for, each with the reason.
NO_PROGRAM: dict[str, str] = (
    programs_vision.NO_PROGRAM | programs_text.NO_PROGRAM | programs_structured.NO_PROGRAM
)
