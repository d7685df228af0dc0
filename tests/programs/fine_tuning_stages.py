"""A pretrained base frozen, thawed in part, fine-tuned with adapters, quantized, and trained on: five compiles."""

import keras
import numpy as np
from keras import layers

import ckptstore

keras.utils.set_random_seed(63)
draw = np.random.default_rng(0)
x, y = draw.uniform(size=(48, 8, 8, 3)).astype("float32"), draw.integers(0, 2, 48)

image = keras.Input((8, 8, 3))
features = layers.Conv2D(4, 3, use_bias=False)(image)
features = layers.ReLU()(layers.BatchNormalization()(features))
features = layers.BatchNormalization()(layers.Conv2D(4, 3)(features))
base = keras.Model(image, layers.GlobalAveragePooling2D()(features), name="base")
base.trainable = False

inputs = keras.Input((8, 8, 3))
hidden = layers.Dense(8, "relu")(base(layers.RandomFlip("horizontal")(inputs)))
model = keras.Model(inputs, layers.Dense(1, "sigmoid")(layers.Dropout(0.3)(hidden)))
saver = ckptstore.StoreCheckpoint("runs/stages", save_freq=3)
histories = []


def train(optimizer, **options):
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    stops = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    options = {"epochs": 2, "callbacks": [saver, stops], **options}
    histories.append(model.fit(x, y, batch_size=8, validation_split=0.25, verbose=0, **options))


train(keras.optimizers.Adam(1e-2))
base.trainable = True
for layer in base.layers:
    layer.trainable = not isinstance(layer, layers.BatchNormalization)
decay = keras.optimizers.schedules.CosineDecay(1e-3, 10, warmup_steps=3, warmup_target=5e-3)
train(keras.optimizers.SGD(decay, momentum=0.9), initial_epoch=2, epochs=4)
base.trainable = True
train(keras.optimizers.Lion(1e-4, weight_decay=1e-3))
for layer in model.layers:
    if isinstance(layer, layers.Dense):
        layer.enable_lora(2)
train(keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(1e-3), initial_scale=2.0**20))
for layer in model.layers:
    if isinstance(layer, layers.Dense):
        layer.quantize("int8")
train(keras.optimizers.Muon(1e-3) if hasattr(keras.optimizers, "Muon") else "adam")
