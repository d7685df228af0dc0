"""The layers: who may import whom and what, who may change files, how long a file may be."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ckptstore"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "migrations" not in path.relative_to(PACKAGE).parts
}

# From the bottom up. A module imports from its own layer and those below. `formats` stands for all inside,
# and `keras_*` for every module whose name begins so.
FAMILIES = ("keras", "sqlite", "manifest", "fingerprint", "report", "cli")
LAYERS = (
    {
        "errors",
        "records",
        "names",
        "conditions",
        "metric_modes",
        "name_patterns",
        "adapters",
        "cores",
        "forks",
        "signals",
        "signal_handlers",
    },
    {"files", "freeing", "payload_writer", "layout", "locks", "reserve", "run_lock", "formats"},
    {"models", "column_types", "sqlite_*", "schema", "manifest", "manifest_*"},
    {
        "background",
        "retention",
        "retaining",
        "removal",
        "wholeness",
        "pruning",
        "retries",
        "save_request",
        "publishing",
        "quarantine",
        "adoption",
        "commit",
        "recovery",
        "resuming",
        "verification",
        "repairing",
        "rebuilding",
        "refs",
        "claims",
        "holders",
        "opening",
        "discarding",
        "histories",
        "exporting",
        "differences",
        "new_files",
        "earlier",
        "transfer",
        "importing",
        "model_card",
        "store_moving",
        "dataframe",
        "store",
        "store_queries",
        "store_saving",
    },
    {
        "keras_*",
        "fingerprint",
        "fingerprint_*",
        "training_state",
        "random_state",
        "generator_state",
        "backend_values",
        "state_arrays",
        "state_tree",
        "callback_state",
        "callback_inspection",
        "data_state",
        "data_position",
        "data_attributes",
        "checkpoint_path",
        "monitor",
        "model_checkpoint",
        "save_failures",
        "saves",
        "save_budget",
        "run_writer",
        "validation_data",
        "iteration",
        "epoch_end",
        "exactness",
        "fit_moment",
        "batch_count",
        "fit_position",
        "fit_session",
        "guard",
        "fit_state",
        "resumed_run",
        "resume_report",
        "resuming_callback",
        "store_checkpoint",
        "backup_and_restore",
    },
    {
        "report",
        "report_*",
        "picture",
        "html_report",
        "supervise",
        "supervised_child",
        "cli",
        "cli_*",
    },
)

# The only modules that import a package, even late. What is for type checkers only does not count.
OWNERS = {
    "keras": LAYERS[4],
    "sqlalchemy": LAYERS[2],
    "sqlite3": LAYERS[2],
    "alembic": {"schema"},
    "h5py": {"formats", "keras_*"},
    "filelock": {"locks", "run_lock"},
    "pandas": {"dataframe"},
    "matplotlib": {"picture"},
    "safetensors": {"exporting"},
    "click": {"cli", "cli_*"},
    "rich": {"report_*", "cli_*"},
}

# `os` functions, and methods of `Path`, that change the file system.
MUTATING = {
    "fsync", "fdatasync", "rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "link",
    "symlink", "truncate", "ftruncate", "posix_fallocate", "mkdir", "makedirs", "chmod", "fchmod",
    "write_bytes", "write_text", "touch", "symlink_to", "hardlink_to", "rmtree", "copyfile", "copy2",
    "copytree", "move",
}  # fmt: skip
# Methods of `str`, `dict` and `list` that have the same names.
HARMLESS_AS_METHODS = {"replace", "remove", "copy", "move", "link"}
MAY_MUTATE = {"files", "payload_writer"}
# Keras' layers load assets (vocabularies, say) from files: made in a temporary directory, not in a store.
# A memfd has no place in any file system.
SCRATCH = {
    "ckptstore.keras_private.assets": {"mkdir", "write_bytes"},
    "ckptstore.background.memory": {"ftruncate"},
}

# The only place for what Keras does not promise. Private names of other packages that are used elsewhere.
KERAS_PRIVATE = "ckptstore.keras_private"
OTHERS_PRIVATE = {"_asdict", "_exit", "_foreach_copy_", "_getframe", "_version"}


def short(module: str) -> str:
    """Return a module's name as the tables above have it."""
    name = module.removeprefix("ckptstore").removeprefix(".").partition(".")[0] or "__init__"
    prefix = name.partition("_")[0]
    return f"{prefix}_*" if prefix in FAMILIES and prefix != name else name


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the full names of everything that a file imports when it runs, early or late."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


@functools.cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return the modules of this project that a file imports."""
    names = {name for name in imports(path) if name.split(".")[0] == "ckptstore"}
    return frozenset(name if name in MODULES else name.rpartition(".")[0] for name in names)


def layer(module: str) -> int:
    return next(number for number, members in enumerate(LAYERS) if short(module) in members)


def test_every_module_has_a_layer() -> None:
    known = set().union(*LAYERS) | {"__init__"}
    assert {short(module) for module in MODULES} <= known


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module: str) -> None:
    if short(module) == "__init__":
        return  # the package's front door names everything, and imports nothing until it is asked for
    upwards = {
        name for name in imported_modules(MODULES[module]) - {"ckptstore"} if layer(name) > layer(module)
    }
    # `adapters` names the module that adapts Keras as text: no import, and none until a model is met.
    assert not upwards


def test_there_is_no_import_cycle() -> None:
    graph = {name: imported_modules(path) - {name, "ckptstore"} for name, path in MODULES.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_package_is_imported_by_its_owners_only(package: str) -> None:
    importers = {
        short(module)
        for module, path in MODULES.items()
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert importers <= OWNERS[package]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_the_file_module_changes_files(module: str) -> None:
    if short(module) in MAY_MUTATE:
        return
    calls: list[str] = []
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        of_os = isinstance(owner, ast.Name) and owner.id in {"os", "shutil"}
        of_files = isinstance(owner, ast.Name) and owner.id == "files"
        if name in SCRATCH.get(module, set()) or of_files:
            continue
        if name in MUTATING and (of_os or name not in HARMLESS_AS_METHODS):
            calls.append(f"{MODULES[module].name}:{node.lineno}: {ast.unparse(node.func)}")
    assert not calls


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


@functools.cache
def defined_names(path: Path) -> frozenset[str]:
    """Return the private names that a module defines: functions, classes, variables, attributes of `self`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                found.update(one.value for one in ast.walk(value) if isinstance(one, ast.Constant))
    return frozenset(name for name in found if is_private(name))


# Functions and methods that take the name of an attribute.
NAMING = {"getattr", "setattr", "hasattr", "delattr", "hook", "overlay", "get", "pop", "attrgetter"}


def private_uses(tree: ast.AST) -> list[tuple[int, str, bool]]:
    """Return (line, name, of `self`) of all that may reach into a package's inside."""
    found: list[tuple[int, str, bool]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if is_private(name):
                found.append((node.lineno, name, isinstance(owner, ast.Name) and owner.id in ("self", "cls")))
            case ast.Attribute(value=ast.Name(id="keras"), attr="src"):
                found.append((node.lineno, "keras.src", False))
            case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=arguments):
                texts = [str(one.value) for one in arguments if isinstance(one, ast.Constant)]
                private = [text for text in texts if is_private(text)] if function in NAMING else []
                found += [(node.lineno, text, False) for text in private]
            case ast.Subscript(slice=ast.Constant(value=str(text))) if is_private(text):
                found.append((node.lineno, text, False))
            case ast.Constant(value=str(text)) if is_inside_keras(text):
                found.append((node.lineno, text, False))
            case ast.Import(names=names):
                found += [(node.lineno, one.name, False) for one in names if is_inside_keras(one.name)]
            case ast.ImportFrom(module=module, names=names):
                full = [f"{module}.{one.name}" for one in names]
                found += [(node.lineno, name, False) for name in full if is_inside_keras(name)]
    return found


def is_inside_keras(name: str) -> bool:
    return re.match(r"keras\.(src\b|_)", name) is not None


def reaches_into_keras(module: str) -> list[str]:
    """Return where a module uses a private name that neither it nor a module that it imports defines.

    A name that `keras_private` uses as one of Keras' is so wherever it stands, unless it is an attribute of `self`.
    """
    near = {module, *imported_modules(MODULES[module])} & set(MODULES)
    # A class may inherit its methods through more than one module.
    near |= set().union(*(imported_modules(MODULES[name]) for name in near)) & set(MODULES)
    known = set().union(*(defined_names(MODULES[name]) for name in near if not in_private(name)))
    return [
        f"{module}:{line}: {name}"
        for line, name, of_self in private_uses(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if name not in known | OTHERS_PRIVATE or (not of_self and name in names_of_keras())
    ]


def in_private(module: str) -> bool:
    return module.startswith(KERAS_PRIVATE)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not in_private(name)))
def test_what_keras_does_not_promise_is_used_in_one_package(module: str) -> None:
    assert not reaches_into_keras(module)


@functools.cache
def names_of_keras() -> frozenset[str]:
    """Return the private names that the package uses and does not define."""
    paths = [path for name, path in MODULES.items() if in_private(name)]
    defined = set().union(*(defined_names(path) for path in paths))
    used = {
        name for path in paths for _, name, _ in private_uses(ast.parse(path.read_text(encoding="utf-8")))
    }
    return frozenset(used - defined - OTHERS_PRIVATE)


@pytest.mark.parametrize(
    "line",
    [
        "import keras.src.saving.saving_lib",
        "from keras.src.saving import saving_lib",
        "from keras import _tf_keras",
        "import_module('keras.src.saving.saving_lib')",
        "keras.src.saving.saving_lib.save_model(model)",
        "model._initial_epoch = 3",
        "getattr(model, '_compile_metrics', None)",
        "loop.hook(iterator, '_get_iterator', make)",
    ],
)
def test_reaching_into_keras_is_noticed(line: str) -> None:
    assert private_uses(ast.parse(line))


def test_the_package_tells_of_each_private_interface() -> None:
    text = MODULES[KERAS_PRIVATE].read_text(encoding="utf-8")
    told = set(re.findall(r"\b_[a-z]\w+", text))
    # Attributes of callbacks stand in a table of their own.
    untold = {name for name in names_of_keras() if is_private(name)} - told
    assert not untold - defined_strings(MODULES[f"{KERAS_PRIVATE}.callback_attributes"])


def defined_strings(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}


FILES = sorted([*MODULES.values(), *(ROOT / "tools").glob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_idea_of_reasonable_length(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring, f"{path} does not say what it is responsible for"
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_functions_are_short() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body[-1].end_lineno - body_start(node) >= 50
    ]
    assert not long


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the line at which a function's statements begin, behind its docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return body[0].lineno


def test_there_is_no_drawer_for_odds_and_ends() -> None:
    names = {path.stem for path in MODULES.values()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_the_top_level_holds_only_what_belongs_there() -> None:
    allowed = {
        "pyproject.toml", "README.md", "ckptstore", "migrations", "tests", "tools", "LICENSE", "CHANGELOG.md",
        "constraints.txt",
    }  # fmt: skip
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {name.split("/")[0] for name in tracked.stdout.split("\0") if name}
    assert {name for name in names if not name.startswith(".")} <= allowed


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after some code."""
    program = (
        f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = modules_after("import ckptstore")
    assert "ckptstore" in loaded
    assert not loaded & {"keras", "jax", "torch", "numpy", "sqlalchemy", "alembic", "h5py", "rich", "click"}


def test_every_public_name_is_there() -> None:
    import ckptstore

    for name in ckptstore.__all__:
        assert getattr(ckptstore, name) is not None
        assert name in dir(ckptstore)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ckptstore.nonsense
