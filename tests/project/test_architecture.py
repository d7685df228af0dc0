"""The structure of the code: imports of rooms, modules that change files, private interfaces of Keras, file lengths.

The allowed imports are contracts in pyproject.toml; here are the rules that these cannot express.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "ckptstore"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "migrations" not in path.relative_to(PACKAGE).parts
}

# `os` functions, and methods of `Path`, that change the file system.
MUTATING = {
    "fsync", "fdatasync", "rename", "renames", "replace", "unlink", "remove", "removedirs", "rmdir", "link",
    "symlink", "truncate", "ftruncate", "posix_fallocate", "mkdir", "makedirs", "chmod", "fchmod",
    "write_bytes", "write_text", "touch", "symlink_to", "hardlink_to", "rmtree", "copyfile", "copy2",
    "copytree", "move",
}  # fmt: skip
# Names that `str`, `dict` and `list` have as methods too.
HARMLESS_AS_METHODS = {"replace", "remove", "copy", "move", "link"}
MAY_MUTATE = {"ckptstore.storage.files", "ckptstore.storage.durable_writer"}
# Layers of Keras load assets (such as vocabularies) from files, which are created in a temporary directory, not in a
# store. A memfd is not part of any file system. The file of a `CSVLogger` is Keras' own.
SCRATCH = {
    "ckptstore.keras.private.assets": {"mkdir", "write_bytes"},
    "ckptstore.keras.state.csv_log": {"truncate"},
    "ckptstore.system.shared_memory": {"ftruncate"},
}

# The only place for private interfaces of Keras; then private names of other packages that are used elsewhere.
KERAS_PRIVATE = "ckptstore.keras.private"
OTHERS_PRIVATE = {"_asdict", "_current_frames", "_exit", "_foreach_copy_", "_getframe", "_version"}


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file, which nothing may change."""
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """Keep the trees only as long as the tests of this file need them."""
    yield
    parsed.cache_clear()


def broken(rule: Callable[[Any], object], cases: Iterable[Any]) -> dict[str, object]:
    """Return what a rule finds wrong, by the module or file that it was asked about."""
    return {str(case): wrong for case in cases if (wrong := rule(case))}


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the full names of everything that a file imports at run time, early or late."""
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

    Visitor().visit(parsed(path))
    return frozenset(found)


@functools.cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return the modules of this project that a file imports."""
    names = {name for name in imports(path) if name.split(".")[0] == "ckptstore"}
    return frozenset(name if name in MODULES else name.rpartition(".")[0] for name in names)


ROOMS = {name: path.parent for name, path in MODULES.items() if path.name == "__init__.py"}


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of pyproject.toml for the package in a folder.

    With the oldest releases import-linter cannot be installed, and these tests skip.
    """
    pytest.importorskip("importlinter")
    program = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", folder / "pyproject.toml", "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_of_the_rooms_hold() -> None:
    done = contracts(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("storage/files.py", "import ckptstore.store.store"),
        ("storage/layout.py", "import ckptstore.manifest.manifest"),
        ("keras/private/assets.py", "import ckptstore.keras.model.adapter"),
        ("store/refs.py", "import sqlalchemy"),
        ("cli/keep.py", "import ckptstore.training.store_checkpoint"),
        ("cli/report.py", "import ckptstore.formats.payload"),
        ("cli/maintain.py", "import ckptstore.manifest.schema"),
        ("cli/run.py", "import ckptstore.commit.open"),
        ("somewhere/__init__.py", ""),
    ],
)
def test_the_contracts_find_a_wrong_import(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "ckptstore", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    changed = tmp_path / "ckptstore" / module
    changed.parent.mkdir(exist_ok=True)
    with changed.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = contracts(tmp_path)
    assert done.returncode == 1, done.stdout
    assert "broken" in done.stdout.lower() or "missing" in done.stdout.lower(), done.stdout


def docstring(room: str) -> str:
    return ast.get_docstring(parsed(MODULES[room])) or ""


def test_each_room_says_what_it_is_for() -> None:
    assert not broken(lambda room: "May import: " not in docstring(room), set(ROOMS) - {"ckptstore"})


# The rooms of words, which hold no bytes and call no system: "the words" of a room's docstring.
WORDS = {"errors", "records", "validation", "metrics", "printable", "version"}


def not_listed(room: str) -> set[str]:
    """Return the rooms that a room imports, and does not list."""
    sentence = re.split(r"[.;]\s|\.$", docstring(room).partition("May import: ")[2])[0]
    listed = set(re.findall(r"[a-z0-9]+", sentence)) | (WORDS if "the words" in sentence else set())
    imported = {module for path in ROOMS[room].rglob("*.py") for module in imported_modules(path)}
    rooms = {module.split(".")[1] for module in imported if "." in module} - {room.split(".")[1]}
    return rooms - listed


def test_a_room_imports_what_its_docstring_lists() -> None:
    assert not broken(not_listed, (room for room in ROOMS if room.count(".") == 1))


def missing_doors(room: str) -> list[str]:
    doors = re.findall(r"(?<!`)`([a-z]\w*(?:\.\w+)+)`(?!`)", docstring(room))
    modules = {name.removeprefix(f"{room}.") for name in MODULES if name.startswith(f"{room}.")}
    return [door for door in doors if door.split(".")[0] in modules and not resolves(f"{room}.{door}")]


def test_each_door_that_a_room_names_exists() -> None:
    assert not broken(missing_doors, set(ROOMS) - {"ckptstore"})


def too_few_or_too_many(room: str) -> list[str]:
    modules = [path.name for path in ROOMS[room].glob("*.py") if path.stem not in ("__init__", "__main__")]
    rooms = [path.parent.name for path in ROOMS[room].glob("*/__init__.py")]
    return [] if 1 < len(modules + rooms) <= 22 else sorted([*modules, *rooms, f"({len(modules + rooms)})"])


def test_a_room_has_more_than_one_module_and_not_too_many() -> None:
    assert not broken(too_few_or_too_many, ROOMS)


def changes_of_files(module: str) -> list[str]:
    calls: list[str] = []
    for node in ast.walk(parsed(MODULES[module])):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner, name = node.func.value, node.func.attr
        of_os = isinstance(owner, ast.Name) and owner.id in {"os", "shutil"}
        of_files = isinstance(owner, ast.Name) and owner.id == "files"
        if name in SCRATCH.get(module, set()) or of_files:
            continue
        if name in MUTATING and (of_os or name not in HARMLESS_AS_METHODS):
            calls.append(f"{MODULES[module].name}:{node.lineno}: {ast.unparse(node.func)}")
    return calls


def test_only_the_file_module_changes_files() -> None:
    assert not broken(changes_of_files, sorted(set(MODULES) - MAY_MUTATE))
    # The rule sees the calls in the modules that may make them.
    assert all(changes_of_files(module) for module in MAY_MUTATE)


# Where it may be known which payload formats there are: their own room, their names, and the type of a name.
KNOWS_FORMATS = ("ckptstore.formats.", "ckptstore.storage.payloads.names", "ckptstore.records.checkpoints")
# Where it may be known where payloads lie. Keras' own code tells formats by the names of files.
KNOWS_SUFFIXES = (*KNOWS_FORMATS, "ckptstore.keras.private.fallback")
FORMAT_NAMES = {"keras", "weights", "h5", "sharded"}
PAYLOAD_SUFFIXES = {".keras", ".weights.h5", ".h5", ".sharded"}
PAYLOAD_DIRECTORIES = {"checkpoints", "tmp", "quarantine"}


def named_formats(node: ast.AST) -> set[str]:
    """Return the names of formats among the constants of an expression."""
    return {
        constant.value
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in FORMAT_NAMES
    }


def questions_of_format(tree: ast.AST) -> list[str]:
    """Return where code asks which format a payload has, rather than what it is."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                asked = any("format" in ast.unparse(side).lower() for side in (left, *others))
                if asked and any(named_formats(side) for side in (left, *others)):
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
            case ast.match_case(pattern=pattern) if named_formats(pattern):
                found.append(f"{pattern.lineno}: {ast.unparse(pattern)}")
            case ast.Dict(keys=keys) if len(set().union(*(named_formats(key) for key in keys if key))) > 1:
                found.append(f"{node.lineno}: a table of formats")
            case ast.Tuple(elts=names) | ast.List(elts=names) | ast.Set(elts=names):
                if len({one.value for one in names if isinstance(one, ast.Constant)} & FORMAT_NAMES) > 1:
                    found.append(f"{node.lineno}: a list of formats")
    return found


def places_of_payloads(tree: ast.AST) -> list[str]:
    """Return where code says by itself where a payload lies, or how its name ends."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if name in PAYLOAD_DIRECTORIES:
                if re.fullmatch(r"(?:.*\.)?_?layout|Layout\(.*\)", ast.unparse(owner)):
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
            case ast.Constant(value=str(text)) if text in PAYLOAD_SUFFIXES:
                found.append(f"{node.lineno}: {text!r}")
            case ast.ImportFrom(names=names) if any(alias.name == "SUFFIXES" for alias in names):
                found.append(f"{node.lineno}: SUFFIXES")
            case ast.Attribute(value=ast.Attribute(attr="path"), attr=name) if name in PATH_METHODS:
                if re.search(r"checkpoint\.path\.", ast.unparse(node)):
                    found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


PATH_METHODS = {
    "open",
    "stat",
    "exists",
    "read_bytes",
    "unlink",
    "parent",
    "name",
    "suffix",
    "rename",
    "with_name",
}


def test_no_other_room_asks_which_format_a_payload_has() -> None:
    others = [name for name in MODULES if not name.startswith(KNOWS_FORMATS)]
    assert not broken(lambda module: questions_of_format(parsed(MODULES[module])), others)


def test_no_other_room_says_where_payloads_lie() -> None:
    others = [name for name in MODULES if not name.startswith((*KNOWS_SUFFIXES, "ckptstore.storage."))]
    assert not broken(lambda module: places_of_payloads(parsed(MODULES[module])), others)


@pytest.mark.parametrize(
    "line",
    [
        'if checkpoint.format == "h5": pass',
        'if "weights" != self._format: pass',
        'if format in ("keras", "h5"): pass',
        'loading = {"keras": 1, "weights": 2}[checkpoint.format]',
        'for format in ("keras", "weights", "h5"): pass',
        'match checkpoint.format:\n    case "sharded": pass',
    ],
)
def test_a_question_for_a_format_is_noticed(line: str) -> None:
    assert questions_of_format(ast.parse(line))


@pytest.mark.parametrize(
    "line",
    [
        "path = layout.checkpoints / name",
        "os.listdir(self._layout.quarantine)",
        "Layout(root).tmp.iterdir()",
        'path.name.endswith(".keras")',
        "from ckptstore.storage.payloads.names import SUFFIXES",
        "checkpoint.path.stat().st_size",
        "self.checkpoint.path.exists()",
    ],
)
def test_a_place_of_payloads_is_noticed(line: str) -> None:
    assert places_of_payloads(ast.parse(line))


def test_other_words_are_not_taken_for_formats_or_places() -> None:
    harmless = (
        'if module in ("keras", "builtins"): pass',
        'save(model, format="weights")',
        "manifest.checkpoints.latest()",
        "store.checkpoints()",
        "print(checkpoint.path)",
    )
    assert not any(
        questions_of_format(ast.parse(line)) + places_of_payloads(ast.parse(line)) for line in harmless
    )


def is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


@functools.cache
def defined_names(path: Path) -> frozenset[str]:
    """Return the private names that a module defines: functions, classes, variables, attributes of `self`."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                found.update(
                    constant.value for constant in ast.walk(value) if isinstance(constant, ast.Constant)
                )
    return frozenset(name for name in found if is_private(name))


# Functions and methods that take the name of an attribute.
NAMING = {
    "getattr",
    "setattr",
    "hasattr",
    "delattr",
    "wrap_method",
    "replace_attribute",
    "get",
    "pop",
    "attrgetter",
}


def private_uses(tree: ast.AST) -> list[tuple[int, str, bool]]:
    """Return (line, name, of `self`) of all uses of names that may be private to a package."""
    found: list[tuple[int, str, bool]] = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=owner, attr=name) if is_private(name):
                found.append((node.lineno, name, isinstance(owner, ast.Name) and owner.id in ("self", "cls")))
            case ast.Attribute(value=ast.Name(id="keras"), attr="src"):
                found.append((node.lineno, "keras.src", False))
            case ast.Call(func=ast.Name(id=function) | ast.Attribute(attr=function), args=arguments):
                texts = [str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
                private = [text for text in texts if is_private(text)] if function in NAMING else []
                found += [(node.lineno, text, False) for text in private]
            case ast.Subscript(slice=ast.Constant(value=str(text))) if is_private(text):
                found.append((node.lineno, text, False))
            case ast.Constant(value=str(text)) if is_inside_keras(text):
                found.append((node.lineno, text, False))
            case ast.Import(names=names):
                found += [(node.lineno, alias.name, False) for alias in names if is_inside_keras(alias.name)]
            case ast.ImportFrom(module=module, names=names):
                full = [f"{module}.{alias.name}" for alias in names]
                found += [(node.lineno, name, False) for name in full if is_inside_keras(name)]
    return found


def is_inside_keras(name: str) -> bool:
    return re.match(r"keras\.(src\b|_)", name) is not None


def reaches_into_keras(module: str) -> list[str]:
    """Return where a module uses a private name that neither it nor a module that it imports defines.

    A name that `keras.private` uses as one of Keras' is so everywhere, unless it is an attribute of `self`.
    """
    near = {module, *imported_modules(MODULES[module])} & set(MODULES)
    # A class may inherit its methods through more than one module.
    near |= set().union(*(imported_modules(MODULES[name]) for name in near)) & set(MODULES)
    known = set().union(*(defined_names(MODULES[name]) for name in near if not in_private(name)))
    return [
        f"{module}:{line}: {name}"
        for line, name, of_self in private_uses(parsed(MODULES[module]))
        if name not in known | OTHERS_PRIVATE or (not of_self and name in names_of_keras())
    ]


def in_private(module: str) -> bool:
    return module.startswith(KERAS_PRIVATE)


def test_what_keras_does_not_promise_is_used_in_one_package() -> None:
    assert not broken(reaches_into_keras, (name for name in MODULES if not in_private(name)))


@functools.cache
def names_of_keras() -> frozenset[str]:
    """Return the private names that the package uses and does not define."""
    paths = [path for name, path in MODULES.items() if in_private(name)]
    defined = set().union(*(defined_names(path) for path in paths))
    used = {name for path in paths for _, name, _ in private_uses(parsed(path))}
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
        "loop.wrap_method(iterator, '_get_iterator', make)",
    ],
)
def test_reaching_into_keras_is_noticed(line: str) -> None:
    assert private_uses(ast.parse(line))


def test_each_private_interface_of_keras_is_documented() -> None:
    text = MODULES[KERAS_PRIVATE].read_text(encoding="utf-8")
    documented_names = set(re.findall(r"\b_[a-z]\w+", text))
    # Attributes of callbacks stand in a table of their own.
    undocumented = {name for name in names_of_keras() if is_private(name)} - documented_names
    assert not undocumented - defined_strings(MODULES[f"{KERAS_PRIVATE}.callback_attributes"])


def defined_strings(path: Path) -> set[str]:
    tree = parsed(path)
    return {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}


def documented(tree: ast.AST) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return everything in a module that may have a docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


SOURCES = sorted(
    [*MODULES.values(), *(path for folder in ("tools", "tests") for path in (ROOT / folder).rglob("*.py"))]
)


@functools.cache
def docstrings(path: Path) -> list[str]:
    """Return the docstrings of a file, whose tree is not kept: there are many files besides the package's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [ast.get_docstring(node) or "" for node in documented(tree)]


def questions_as_docstrings(path: Path) -> list[str]:
    first = [text.partition("\n")[0] for text in docstrings(path)]
    return [line for line in first if line.startswith(("What ", "Whose ", "Whether ", "The part of"))]


def test_no_docstring_begins_with_a_question_word() -> None:
    assert not broken(questions_as_docstrings, SOURCES)


@functools.cache
def defined(module: str) -> dict[str, ast.stmt]:
    """Return what a module defines or imports at its top level, by name."""
    return in_body(parsed(MODULES[module]).body)


def in_body(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Return the statements of a module or class that bind a name, by name; those inside `if` and `try` too."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found[node.name] = node
            case ast.ImportFrom() | ast.Import():
                found.update((alias.asname or alias.name, node) for alias in node.names)
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [
                    name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
                ]
                found.update((name, node) for name in names)
            case ast.If() | ast.Try():
                found |= in_body(node.body) | in_body(node.orelse)
    return found


def resolves(name: str) -> bool:
    """Return True if a dotted name is a module, or a name in one, or an attribute of a class in one."""
    module = max((known for known in MODULES if f"{name}.".startswith(f"{known}.")), key=len, default="")
    return bool(module) and has_attribute(module, name.removeprefix(module).split(".")[1:])


def has_attribute(module: str, names: list[str]) -> bool:
    """Return True if a module defines a name, and what that stands for has the attribute, if there is a second."""
    if not names:
        return True
    node = defined(module).get(names[0])
    if isinstance(node, ast.ImportFrom) and node.module in MODULES:
        return f"{node.module}.{names[0]}" in MODULES or has_attribute(node.module, names)
    if node is None or len(names) == 1:
        return node is not None
    if not isinstance(node, ast.ClassDef) or len(names) > 2:
        return False
    own = {attribute.attr for attribute in ast.walk(node) if isinstance(attribute, ast.Attribute)}
    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
    return names[1] in own | set(in_body(node.body)) or any(
        has_attribute(module, [base, names[1]]) for base in bases
    )


def prose(path: Path) -> list[str]:
    """Return the docstrings and comments of a file."""
    with path.open(encoding="utf-8") as file:
        comments = [
            token.string
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT
        ]
    return [*comments, *docstrings(path)]


def missing_names(path: Path) -> list[str]:
    named = re.findall(r"`(ckptstore(?:\.\w+)+)", "\n".join(prose(path)))
    return [name for name in named if not resolves(name)]


def test_names_of_the_package_in_prose_exist() -> None:
    assert not broken(missing_names, SOURCES)


def test_a_name_that_does_not_exist_is_noticed() -> None:
    good = ("manifest.runs", "CheckpointStore.save", "storage.layout.Layout.root", "errors.NotFoundError")
    bad = ("nonsense", "manifest.runs.Nonsense", "CheckpointStore.nonsense", "storage.layout.Layout.nonsense")
    assert all(resolves(f"ckptstore.{name}") for name in good)
    assert not any(resolves(f"ckptstore.{name}") for name in bad)


FILES = sorted([*MODULES.values(), *(ROOT / "tools").rglob("*.py")])


def faults_of_a_file(path: Path) -> list[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    first = docstrings(path)[0].partition("\n")[0]
    rules = {
        f"{lines} lines": lines <= 500,  # from 400 on, look for two ideas
        "it does not say what it is responsible for": bool(first),
        "its docstring does not begin with a sentence": first.endswith((".", ":")),
    }
    return [fault for fault, kept in rules.items() if not kept]


def test_a_file_is_one_idea_of_reasonable_length() -> None:
    assert not broken(faults_of_a_file, FILES)


def test_functions_are_short() -> None:
    long = [
        f"{path.name}:{node.name}"
        for path in MODULES.values()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body[-1].end_lineno - body_start(node) >= 50
    ]
    assert not long


def body_start(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the line at which a function's statements begin, after its docstring."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return body[0].lineno


def test_there_is_no_module_for_odds_and_ends() -> None:
    names = {path.stem for path in MODULES.values()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_the_top_level_holds_only_what_belongs_there() -> None:
    allowed = {
        "pyproject.toml", "README.md", "ckptstore", "migrations", "tests", "tools", "LICENSE", "CHANGELOG.md",
        "constraints.txt", "CONTRIBUTING.md",
    }  # fmt: skip
    command = ["git", f"--git-dir={ROOT / '.git'}", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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


def test_every_public_name_exists() -> None:
    import ckptstore

    for name in ckptstore.__all__:
        assert getattr(ckptstore, name) is not None
        assert name in dir(ckptstore)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ckptstore.nonsense
