"""Metrics as numbers: the better direction of each, comparison with the best, and scalars among the logs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidArgumentError
from ckptstore.records import Mode
from ckptstore.validation import check_metric_name

if TYPE_CHECKING:
    from ckptstore.records import Mode

# Common names of metrics; a longer name may end in "_" and one of them.
_HIGHER = (
    "accuracy", "acc", "auc", "precision", "recall", "f1", "f1_score", "fbeta_score", "fscore", "iou", "mean_iou",
    "dice", "map", "r2", "r2_score", "bleu", "psnr", "ssim", "ndcg", "mrr", "hits", "kappa", "mcc", "correlation",
    "sensitivity", "specificity", "cosine_similarity", "true_positives", "true_negatives", "reward", "return", "score",
)  # fmt: skip
_LOWER = (
    "loss", "error", "err", "mse", "mae", "rmse", "msle", "mape", "mean_squared_error", "mean_absolute_error",
    "root_mean_squared_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error", "crossentropy",
    "cross_entropy", "logcosh", "hinge", "kl_divergence", "kullback_leibler_divergence", "poisson", "nll",
    "perplexity", "ppl", "wer", "cer", "fid", "distance", "false_positives", "false_negatives", "log_cosh", "huber",
)  # fmt: skip


def mode_of(metric: str) -> Mode | None:
    """Return the better direction of a metric, ``"min"`` or ``"max"``; None where the name does not tell.

    A leading ``val_`` and a trailing number (``auc_1``) do not count; the end of the name decides, so that the
    metrics of several outputs (``left_accuracy``) are known too.

    Example:
        >>> mode_of("val_loss"), mode_of("left_sparse_categorical_accuracy"), mode_of("AUC_2"), mode_of("lr")
        ('min', 'max', 'max', None)
    """
    name = metric.lower().removeprefix("val_")
    head, _, tail = name.rpartition("_")
    if head and tail.isdecimal():
        name = head
    if _ends_with(name, _LOWER):
        return "min"
    if _ends_with(name, _HIGHER):
        return "max"
    return None


def _ends_with(name: str, words: tuple[str, ...]) -> bool:
    return any(name == word or name.endswith(f"_{word}") for word in words)


def is_better(value: float, best: float | None, mode: Mode) -> bool:
    """Return True if a value is better than the best; NaN never is, and any other value is better than None.

    Example:
        >>> is_better(0.4, 0.5, "min"), is_better(0.5, 0.5, "max"), is_better(float("inf"), None, "min")
        (True, False, True)
    """
    if math.isnan(value):
        return False
    if best is None or math.isnan(best):
        return True
    return value < best if mode == "min" else value > best


def better_of(first: float | None, second: float | None, mode: Mode) -> float | None:
    """Return the better of two values, either of which may be missing."""
    if first is None or second is None:
        return second if first is None else first
    return first if is_better(first, second, mode) else second


def scalar(value: Any) -> float | None:
    """Return a value of the logs as a float, or None if it is not one number.

    Example:
        >>> scalar(1), scalar([1, 2]), scalar("a")
        (1.0, None, None)
    """
    if len(getattr(value, "shape", ())) > 0 or isinstance(value, str | bytes):
        return None
    if getattr(value, "requires_grad", False):
        value = value.detach()  # else torch warns
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def scalars(logs: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return the logs that can be recorded as metrics, and the names of those that cannot.

    Example:
        >>> scalars({"loss": 0.5, "confusion": [[1, 2], [3, 4]]})
        ({'loss': 0.5}, ['confusion'])
    """
    kept: dict[str, float] = {}
    dropped: list[str] = []
    for name, value in logs.items():
        number = scalar(value)
        if number is None or not _is_metric_name(name):
            dropped.append(str(name))
        else:
            kept[name] = number
    return kept, dropped


def _is_metric_name(name: object) -> bool:
    try:
        check_metric_name(name)
    except InvalidArgumentError:
        return False
    return True
