"""Actor and critic in one network, trained after each episode with a tape; a running reward is kept."""

import keras
import numpy as np
import tensorflow as tf

import ckptstore

keras.utils.set_random_seed(54)
inputs = keras.Input((4,))
common = keras.layers.Dense(8, activation="relu")(inputs)
model = keras.Model(
    inputs, [keras.layers.Dense(2, activation="softmax")(common), keras.layers.Dense(1)(common)]
)
optimizer = keras.optimizers.Adam(0.01)
optimizer.build(model.trainable_variables)
huber = keras.losses.Huber()
running_reward = 0.0

with ckptstore.CheckpointStore("runs/actor-critic") as store:
    found = store.resume(model, optimizer=optimizer)
    if found is not None:
        running_reward = found.extra["running_reward"]
    for episode in range(0 if found is None else found.epoch + 1, 6):
        state, rewards, logs, values = np.random.normal(size=4), [], [], []
        with tf.GradientTape() as tape:
            for _ in range(6):
                chances, value = model(state[None].astype("float32"))
                action = np.random.choice(2, p=np.squeeze(chances) / np.sum(chances))
                values.append(value[0, 0])
                logs.append(tf.math.log(chances[0, action]))
                state = state + np.random.normal(size=4) * 0.1 + (0.1 if action else -0.1)
                rewards.append(float(1.0 - abs(state.mean())))
            running_reward = 0.05 * sum(rewards) + 0.95 * running_reward
            returns = np.cumsum(rewards[::-1])[::-1]
            returns = (returns - returns.mean()) / (returns.std() + 1e-6)
            actor = [-log * (ret - value) for log, value, ret in zip(logs, values, returns, strict=True)]
            critic = [
                huber(tf.expand_dims(value, 0), tf.expand_dims(tf.cast(ret, tf.float32), 0))
                for value, ret in zip(values, returns, strict=True)
            ]
            loss = sum(actor) + sum(critic)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        store.save(
            model,
            optimizer=optimizer,
            epoch=episode,
            metrics={"reward": running_reward},
            extra={"running_reward": running_reward},
        )
