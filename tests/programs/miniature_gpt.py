"""A small causal language model; a callback generates text at the end of each epoch, by numpy's generator."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(28)
maxlen, vocabulary = 6, 12
tokens = np.random.default_rng(0).integers(0, vocabulary, (48, maxlen + 1))


class Block(layers.Layer):
    def __init__(self, width, heads, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.attention = layers.MultiHeadAttention(heads, width, dropout=0.1)
        self.feed_forward = layers.Dense(width, activation="relu")
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, inputs):
        x = self.norms[0](inputs + self.attention(inputs, inputs, use_causal_mask=True))
        return self.norms[1](x + self.feed_forward(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads}


class Embeddings(layers.Layer):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.tokens = layers.Embedding(vocabulary, width)
        self.positions = layers.Embedding(maxlen, width)

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(maxlen))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class TextGenerator(keras.callbacks.Callback):
    def __init__(self, start, k=4, print_every=1):
        super().__init__()
        self.start, self.k, self.print_every = start, k, print_every

    def sample_from(self, logits):
        indices = np.argsort(logits)[-self.k :]
        chances = np.exp(logits[indices].astype("float64"))
        return np.random.choice(indices, p=chances / chances.sum())

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.print_every:
            return
        row = list(self.start)
        while len(row) < maxlen:
            padded = np.array([row + [0] * (maxlen - len(row))])
            logits = ops.convert_to_numpy(self.model(padded))[0][len(row) - 1]
            row.append(int(self.sample_from(logits)))
        print("generated:", row)


inputs = keras.Input((maxlen,), dtype="int32")
outputs = layers.Dense(vocabulary)(Block(8, 2)(Embeddings(8)(inputs)))
model = keras.Model(inputs, outputs)
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = model.fit(
    tokens[:, :-1],
    tokens[:, 1:],
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[TextGenerator([1, 2]), ckptstore.StoreCheckpoint("runs/gpt", monitor="loss", save_freq=4)],
)
last_draw = float(np.random.random())
