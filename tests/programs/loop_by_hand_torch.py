"""A loop by hand on torch: a Keras model, a torch optimizer and its scheduler, epochs that are saved."""

import keras
import numpy as np
import torch

import ckptstore

keras.utils.set_random_seed(50)
draw = np.random.default_rng(0)
x = torch.tensor(draw.normal(size=(48, 6)), dtype=torch.float32)
y = torch.tensor(draw.integers(0, 3, 48))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.2), keras.layers.Dense(3)]
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
loss_fn = torch.nn.CrossEntropyLoss()
objects = {"optimizer": optimizer, "scheduler": scheduler}

with ckptstore.CheckpointStore("runs/by-hand") as store:
    found = store.resume(model, objects=objects)
    for epoch in range(0 if found is None else found.epoch + 1, 6):
        for inputs, targets in loader:
            loss = loss_fn(model(inputs, training=True), targets)
            model.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        store.save(model, epoch=epoch, metrics={"loss": float(loss.detach())}, objects=objects)
rate = scheduler.get_last_lr()[0]
