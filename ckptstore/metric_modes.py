"""Which way is better for a metric, as far as its name tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckptstore.records import Mode

# Names, or endings after "_", of what Keras and its users call their metrics.
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
    """Return ``"min"``, ``"max"``, or None where the name does not tell.

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
