"""Makes the pictures of the documentation: runs compared, one of them killed and resumed; and the cost of saves.

tools/pictures.py                   trains on real digits for about a minute, and draws pictures/runs.png
tools/pictures.py figures.json      also draws pictures/saves.png, from the output of `tools/bench --json figures.json`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ckptstore
from bench import plot
from ckptstore.cli.plot import plotted_runs
from ckptstore.report.plot import draw
from digits import training as demo_training

PICTURES = Path(__file__).with_name("pictures")
# Learning rates; the second run is killed in the middle of these epochs.
RATES = (0.004, 0.001, 0.0002)
KILLED = (2, 5)
MAX_WAIT_S = 120.0
METRICS = ("loss", "val_loss", "accuracy", "val_accuracy")


def train(folder: Path, rate: float) -> None:
    """Train a run with this learning rate, or resume it."""
    import keras

    def begin(logs: object) -> None:
        # A resumed run gets its rate from the checkpoint, after this.
        callback.model.optimizer.learning_rate = rate

    callback = keras.callbacks.LambdaCallback(on_train_begin=begin)
    keep = ckptstore.keep_last(2) | ckptstore.keep_best("val_loss") | ckptstore.keep_every(epochs=4)
    store = ckptstore.StoreCheckpoint(
        folder, run=f"rate-{rate:g}", monitor="val_loss", save_interval=0.03, backpressure="wait", keep=keep
    )
    demo_training.train([callback, store])


def train_and_kill(folder: Path, rate: float, epoch: int) -> None:
    """Train, and kill the training in the middle of an epoch."""
    command = [sys.executable, __file__, "--train", str(folder), str(rate)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as training:
        deadline = time.monotonic() + MAX_WAIT_S
        while not in_the_middle(folder, rate, epoch):
            if training.poll() is not None or time.monotonic() > deadline:
                training.kill()
                raise SystemExit("the training ended before it could be killed")
            time.sleep(0.005)
        training.kill()


def in_the_middle(folder: Path, rate: float, epoch: int) -> bool:
    """Return True if the newest checkpoint is from the middle of this epoch or of a later one."""
    try:
        with ckptstore.CheckpointStore(folder, read_only=True) as store:
            newest = store.resume_point(f"rate-{rate:g}")
    except ckptstore.StoreNotFoundError:
        return False
    return newest is not None and newest.epoch >= epoch and newest.batch is not None


def draw_runs(target: Path) -> None:
    """Train all runs, and plot them as `ckptstore plot` does."""
    with tempfile.TemporaryDirectory(prefix="ckptstore-pictures-") as made:
        store = Path(made) / "digits"
        for rate in RATES:
            for epoch in KILLED if rate == RATES[1] else ():
                train_and_kill(store, rate, epoch)
            command = [sys.executable, __file__, "--train", str(store), str(rate)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with ckptstore.CheckpointStore(store, read_only=True) as opened:
            image, _ = draw(plotted_runs(opened, (), METRICS), "runs/digits", "png", METRICS)
    target.write_bytes(image)
    make_small(target)


def make_small(picture: Path) -> None:
    """Reduce a picture to few colours, since it is part of every checkout."""
    from PIL import Image

    with Image.open(picture) as opened:
        few = opened.convert("RGB").quantize(96, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("figures", nargs="?", type=Path, help="the JSON output of tools/bench")
    parser.add_argument("--train", nargs=2, metavar=("STORE", "RATE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), float(options.train[1]))
        return
    PICTURES.mkdir(exist_ok=True)
    if options.figures is not None:
        plot.draw(json.loads(options.figures.read_text(encoding="utf-8")), PICTURES / "saves.png")
        make_small(PICTURES / "saves.png")
    draw_runs(PICTURES / "runs.png")


if __name__ == "__main__":
    main()
