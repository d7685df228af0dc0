"""An optimizer of the user's own with slots and a counter, and gradients centralized in another."""

import keras
import numpy as np
from keras import ops

import ckptstore

keras.utils.set_random_seed(78)


class Centralized(keras.optimizers.RMSprop):
    def apply(self, grads, trainable_variables=None):
        centred = [
            grad - ops.mean(grad, axis=list(range(len(grad.shape) - 1)), keepdims=True)
            if len(grad.shape) > 1
            else grad
            for grad in grads
        ]
        return super().apply(centred, trainable_variables)


class SignMomentum(keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.001, momentum=0.9, name="sign", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.moments = [self.add_variable_from_reference(variable, name="moment") for variable in variables]
        self.turns = self.add_variable(shape=(), name="turns")

    def update_step(self, gradient, variable, learning_rate):
        moment = self.moments[self._get_variable_index(variable)]
        self.assign(moment, self.momentum * moment + (1 - self.momentum) * gradient)
        self.assign_add(self.turns, 1.0)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * ops.sign(moment))

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


draw = np.random.default_rng(0)
x, y = draw.normal(size=(64, 6)).astype("float32"), draw.normal(size=(64, 1)).astype("float32")
models, histories = [], []
for name, optimizer in {"centralized": Centralized(1e-3), "sign": SignMomentum(1e-3)}.items():
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile(optimizer, "mse")
    callback = ckptstore.StoreCheckpoint("runs/optimizers", "loss", run=name, save_freq=3)
    histories.append(model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[callback]))
    models.append(model)
