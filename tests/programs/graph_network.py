"""Node classification: graph convolutions over edges that the model keeps as arrays, batches of node numbers."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(55)
draw = np.random.default_rng(0)
nodes, classes = 40, 3
features = draw.normal(size=(nodes, 6)).astype("float32")
edges = draw.integers(0, nodes, (2, 120))
papers, subjects = np.arange(nodes), draw.integers(0, classes, nodes)


def feed_forward(units, rate):
    return keras.Sequential(
        [layers.BatchNormalization(), layers.Dropout(rate), layers.Dense(units, activation="gelu")]
    )


class GraphConvLayer(layers.Layer):
    def __init__(self, units, rate=0.2, **kwargs):
        super().__init__(**kwargs)
        self.prepare = feed_forward(units, rate)
        self.update = feed_forward(units, rate)

    def call(self, inputs):
        representations, edges, weights = inputs
        here, there = edges[0], edges[1]
        messages = self.prepare(ops.take(representations, there, axis=0)) * weights[:, None]
        gathered = ops.segment_sum(messages, here, num_segments=nodes)
        return ops.normalize(self.update(ops.concatenate([representations, gathered], axis=1)), axis=-1)


class GNNNodeClassifier(keras.Model):
    def __init__(self, graph, units, **kwargs):
        super().__init__(**kwargs)
        self.node_features, self.edges = graph
        self.edge_weights = ops.ones(self.edges.shape[1]) / self.edges.shape[1]
        self.preprocess = feed_forward(units, 0.2)
        self.conv1 = GraphConvLayer(units, name="conv1")
        self.conv2 = GraphConvLayer(units, name="conv2")
        self.compute_logits = layers.Dense(classes)

    def call(self, indices):
        x = self.preprocess(self.node_features)
        x = self.conv1((x, self.edges, self.edge_weights)) + x
        x = self.conv2((x, self.edges, self.edge_weights)) + x
        return self.compute_logits(ops.take(x, indices, axis=0))


model = GNNNodeClassifier((ops.convert_to_tensor(features), ops.convert_to_tensor(edges)), 8)
model.compile(
    keras.optimizers.Adam(0.01),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    papers,
    subjects,
    batch_size=8,
    epochs=3,
    verbose=0,
    callbacks=[
        keras.callbacks.EarlyStopping(monitor="loss", patience=50, restore_best_weights=True),
        ckptstore.StoreCheckpoint("runs/gnn", monitor="accuracy", save_freq=3),
    ],
)
