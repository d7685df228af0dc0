"""A student learns from a trained teacher: compute_loss of the model's own, and arguments of compile of its own."""

import keras
import numpy as np
from keras import layers, ops

import ckptstore

keras.utils.set_random_seed(8)


class Distiller(keras.Model):
    def __init__(self, student, teacher):
        super().__init__()
        self.teacher = teacher
        self.student = student

    def compile(self, optimizer, metrics, student_loss_fn, distillation_loss_fn, alpha=0.1, temperature=3):
        super().compile(optimizer=optimizer, metrics=metrics)
        self.student_loss_fn = student_loss_fn
        self.distillation_loss_fn = distillation_loss_fn
        self.alpha = alpha
        self.temperature = temperature

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, allow_empty=False, training=True):
        teacher_pred = self.teacher(x, training=False)
        student_loss = self.student_loss_fn(y, y_pred)
        distillation_loss = self.distillation_loss_fn(
            ops.softmax(teacher_pred / self.temperature, axis=1),
            ops.softmax(y_pred / self.temperature, axis=1),
        )
        return self.alpha * student_loss + (1 - self.alpha) * distillation_loss * self.temperature**2

    def call(self, x):
        return self.student(x)


def network(width, name):
    return keras.Sequential(
        [keras.Input((10,)), layers.Dense(width, "relu"), layers.Dropout(0.2), layers.Dense(4)], name=name
    )


draw = np.random.default_rng(0)
x, y = draw.normal(size=(96, 10)).astype("float32"), draw.integers(0, 4, 96)
teacher, student = network(32, "teacher"), network(6, "student")
teacher.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
teacher.fit(x, y, epochs=2, batch_size=16, verbose=0)

distiller = Distiller(student=student, teacher=teacher)
distiller.compile(
    optimizer=keras.optimizers.Adam(),
    metrics=[keras.metrics.SparseCategoricalAccuracy()],
    student_loss_fn=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    distillation_loss_fn=keras.losses.KLDivergence(),
    alpha=0.1,
    temperature=10,
)
history = distiller.fit(
    x, y, epochs=3, batch_size=8, verbose=0, callbacks=[ckptstore.StoreCheckpoint("runs/distil", save_freq=5)]
)
score = distiller.evaluate(x, y, verbose=0)
