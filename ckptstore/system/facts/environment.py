"""The environment variables that tell where and how a training runs: an allow-list, never the whole environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ckptstore.system.facts.secrets import is_secret, without_passwords

_NAMES = frozenset(
    {
        "KERAS_BACKEND", "KERAS_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_NAME", "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "PYTHONPATH", "CONDA_DEFAULT_ENV", "VIRTUAL_ENV", "XLA_FLAGS",
        "LIBTPU_INIT_ARGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE",
        "XLA_PYTHON_CLIENT_ALLOCATOR", "TF_DETERMINISTIC_OPS", "TF_CUDNN_DETERMINISTIC",
        "TF_ENABLE_ONEDNN_OPTS", "TF_FORCE_GPU_ALLOW_GROWTH", "TF_XLA_FLAGS", "TF_NUM_INTRAOP_THREADS",
        "TF_NUM_INTEROP_THREADS", "TORCH_DETERMINISTIC", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
        "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "HOSTNAME", "POD_NAME", "NODE_NAME", "PBS_JOBID",
        "PBS_JOBNAME", "PBS_QUEUE", "LSB_JOBID", "LSB_JOBNAME", "LSB_QUEUE", "JOB_ID", "JOB_NAME",
        "INVOCATION_ID", "JOB_COMPLETION_INDEX",
    }
)  # fmt: skip
_PREFIXES = ("SLURM_", "JAX_")
# Variables, and characters of a value, that are kept.
_MOST, _LONGEST = 100, 500


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that are recorded, sorted by name; none whose name may hold a secret.

    Args:
        environment: The environment; None for this process'.

    Example:
        >>> variables({"KERAS_BACKEND": "jax", "HF_TOKEN": "x", "SLURM_JOB_ID": "7", "SLURM_JWT": "x"})
        {'KERAS_BACKEND': 'jax', 'SLURM_JOB_ID': '7'}
    """
    given = os.environ if environment is None else environment
    names = sorted(name for name in given if name in _NAMES or name.startswith(_PREFIXES))
    return {name: _shown(given[name]) for name in [name for name in names if not is_secret(name)][:_MOST]}


def _shown(value: str) -> str:
    value = without_passwords(value.encode("utf-8", "backslashreplace").decode("utf-8"))
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."
