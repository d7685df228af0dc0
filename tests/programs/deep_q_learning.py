"""Deep Q-learning on a walk along a line: a replay buffer, a target network, exploration that decays."""

import json
from collections import deque

import keras
import numpy as np

import ckptstore

keras.utils.set_random_seed(53)
length, actions = 6, 2


def make():
    model = keras.Sequential(
        [keras.Input((length,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(actions, "linear")]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


model, target = make(), make()
target.set_weights(model.get_weights())
buffer, epsilon = deque(maxlen=64), 1.0


def encode(position):
    return np.eye(length, dtype="float32")[[position]]


with ckptstore.CheckpointStore("runs/dqn") as store:
    found = store.resume(model, run="model")
    if found is not None:
        store.restore(found.extra["target"], target)
        buffer.extend(tuple(row) for row in json.loads(found.extra["buffer"]))
        epsilon = found.extra["epsilon"]
    for episode in range(0 if found is None else found.epoch + 1, 6):
        position = 2
        for _ in range(8):
            explore = np.random.random() < epsilon
            values = model.predict_on_batch(encode(position))
            action = int(np.random.randint(actions)) if explore else int(np.argmax(values))
            after = min(max(position + (1 if action else -1), 0), length - 1)
            buffer.append((position, action, float(after == length - 1), after))
            position = after
        rows = [buffer[index] for index in np.random.randint(0, len(buffer), 8)]
        before, chosen, reward, after = map(np.array, zip(*rows, strict=True))
        one_hot = np.eye(length, dtype="float32")
        goal = np.array(model.predict_on_batch(one_hot[before]))
        goal[np.arange(8), chosen] = reward + 0.9 * np.max(target.predict_on_batch(one_hot[after]), axis=1)
        loss = model.train_on_batch(one_hot[before], goal)
        epsilon *= 0.9
        if episode % 2 == 1:
            target.set_weights(model.get_weights())
        kept = store.save(target, run="target", epoch=episode, resumable=False)
        extra = {
            "buffer": json.dumps(list(buffer)),
            "epsilon": epsilon,
            "target": kept.version if kept else 0,
        }
        store.save(model, run="model", epoch=episode, metrics={"loss": float(loss)}, extra=extra)
