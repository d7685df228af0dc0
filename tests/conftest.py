"""Setup of all tests: a backend independent of the developer's settings, and the tests that depend on it."""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from crash import precompile

# Before anything imports Keras. On the CPU, where results are the same from run to run.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_HOME"] = str(Path(tempfile.gettempdir(), f"ckptstore-tests-{os.getuid()}"))
# Attempts record what git tells of the working directory, which for most tests is this repository: an answer that
# depends on the developer, and comes at any time. Tests of that name their own.
os.environ["GIT_DIR"] = os.devnull
# Terminals differ; tests of terminal output create their own.
for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# Programs that tests start import what the tests do, whoever starts the tests and wherever.
ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join(
    [
        *(str(ROOT / path) for path in (".", "tools", "tests/support")),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
)

# A shell makes background jobs ignore these signals, and so would the processes that tests start and stop.
for kind in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(kind) is signal.SIG_IGN:
        signal.signal(kind, signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL)

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Compile SQL statements once per test process, not once per store.
precompile.share_compiled()

TESTS = Path(__file__).parent
COMPILED = "JAX_COMPILATION_CACHE_DIR"
# In 0.4.38, programs from the cache corrupt the memory of the process; this version was seen to work.
COMPILED_SINCE = (0, 10)
# By default JAX does not cache programs that compile quickly.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Small programs take much longer to optimize than to run. Cases of test_exact_resume.py are compiled as users' are.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Backends that may be installed under several names.
RELEASED_AS = {"tensorflow": ["tensorflow", "tensorflow-cpu"]}
USES_KERAS = re.compile(r"^\s*(import|from) keras\b|ckptstore\.ModelCheckpoint\(", re.MULTILINE)
MARKED = re.compile(r"\bpytest\.mark\.backend\b")


def pytest_configure(config: pytest.Config) -> None:
    """Let all tests of this run, and their children, share the programs that JAX compiles; workers inherit it."""
    jax = _version("jax")
    if COMPILED not in os.environ and jax and tuple(map(int, jax.split(".")[:2])) >= COMPILED_SINCE:
        os.environ[COMPILED] = made = tempfile.mkdtemp(prefix="ckptstore-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect doctests from the package only: helpers of tests are not imported before they are needed.

    With ``-m backend``, files without tests that depend on the backend are not imported either.
    """
    if collection_path.suffix != ".py":
        return None
    helper = not collection_path.name.startswith(("test_", "conftest"))
    if helper and collection_path.is_relative_to(TESTS):
        return True
    every = not config.option.markexpr.startswith("backend") or collection_path.name == "conftest.py"
    return None if every or depends_on_the_backend(collection_path) else True


@functools.cache
def imports_keras(path: Path) -> bool:
    """Return True if a test file, or a program that it starts, imports Keras."""
    return bool(USES_KERAS.search(path.read_text(encoding="utf-8")))


def depends_on_the_backend(path: Path) -> bool:
    """Return True if a file may have tests that run on each backend."""
    return imports_keras(path) or bool(MARKED.search(path.read_text(encoding="utf-8")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if imports_keras(item.path):
            item.add_marker(pytest.mark.backend)


def pytest_collection_finish() -> None:
    """Exclude imported objects from garbage collection: a backend has half a million."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def writers() -> Iterator[Any]:
    from forked_writers import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture
def forked_writers(writers: Any) -> Iterator[None]:
    """Fork the processes that save in the background, instead of starting programs that first import everything."""
    with writers.used():
        yield


def pytest_report_header() -> str:
    backend = os.environ["KERAS_BACKEND"]
    packages = (
        "keras",
        *RELEASED_AS.get(backend, [backend]),
        "numpy",
        "h5py",
        "sqlalchemy",
        "alembic",
        "filelock",
    )
    found = {name: release for name in packages if (release := _version(name))}
    return f"backend {backend}; " + ", ".join(f"{name} {release}" for name, release in found.items())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
