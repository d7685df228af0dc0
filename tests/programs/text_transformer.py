"""Text classification by a transformer block and position embeddings written as layers."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(27)
draw = np.random.default_rng(0)
x, y = draw.integers(0, 20, (64, 8)), draw.integers(0, 2, 64)


class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential([layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)])
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        attention = self.dropout1(self.att(inputs, inputs))
        x = self.layernorm1(inputs + attention)
        return self.layernorm2(x + self.dropout2(self.ffn(x)))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        return self.token_emb(x) + self.pos_emb(ops.arange(start=0, stop=ops.shape(x)[-1], step=1))


inputs = keras.Input(shape=(8,))
x_in = TransformerBlock(8, 2, 8)(TokenAndPositionEmbedding(8, 20, 8)(inputs))
hidden = layers.Dropout(0.1)(layers.GlobalAveragePooling1D()(x_in))
hidden = layers.Dropout(0.1)(layers.Dense(8, activation="relu")(hidden))
model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x,
    y,
    batch_size=8,
    epochs=2,
    validation_data=(x[:16], y[:16]),
    verbose=0,
    callbacks=[ckptstore.StoreCheckpoint("runs/transformer", save_freq=3)],
)
