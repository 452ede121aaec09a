"""The street: arrows run down only, in no circle, into a folder through its `__init__`; few files edit anything."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import stridesurgery

HOME = Path(stridesurgery.__file__).parent
STREET = """errors < _hw < _node < _tables < surgery < ops < _trace < _analysis < _rewrite < _features
    < _cost | _verify < detection | plot < _public < __init__ < _cli < __main__"""
LEVEL = {
    room: level
    for level, row in enumerate(STREET.split("<"))
    for room in row.split()
    if room != "|"
}
FILES = {
    ".".join(path.relative_to(HOME).with_suffix("").parts): path
    for path in sorted(HOME.rglob("*.py"))
}

CALLS = {
    "create_node",
    "call_function",
    "erase_node",
    "inserting_before",
    "inserting_after",
    "replace_all_uses_with",
}
CALLS |= {"replace_input_with", "add_submodule", "delete_submodule"}
WRITTEN = {"__class__", "target", "args", "kwargs"}  # of a module; of a node
EDITORS = {
    "_trace.recorder",  # takes the forward of its copy, drops what hooks compute twice
    "_trace.values",  # writes the recording
    "_trace.graph_model",  # reads a saved graph
    "ops.modules",  # each operator's `refine`
    "ops.positions",  # the class that reads a table resampled
    "_rewrite.edit",
    "_rewrite.dilate",
    "_rewrite.rearrange",
    "_features.extract",
    "_features.tokens",
    "_features.dual_outputs",
    "_features.join",
    "_features.sparse_path",
    "_features.tile_graph",
    "_features.freeze_norms",
}


def room(file: str) -> str:
    return file.partition(".")[0]


def contract(folder: str) -> set[str]:
    """The names that a folder's `__init__` lists."""
    tree = ast.parse(FILES[f"{folder}.__init__"].read_text())
    lists = (
        n.value
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"
    )
    return set(ast.literal_eval(next(lists)))


def imported(file: str) -> Iterator[str]:
    """What a file imports of the package: files, and folders by their `__init__`."""
    for node in ast.walk(ast.parse(FILES[file].read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, (ast.Import, ast.ImportFrom))
            else []
        )
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names = [f"{node.module}.{name}" for name in names]
        for parts in (name.split(".") for name in names if room(name) == HOME.name):
            own, inside = parts[1:2] == [room(file)], ".".join(parts[1:])
            if len(parts) > 1 and f"{parts[1]}.__init__" in FILES and not own:
                entered = len(parts) == 2 or (len(parts) == 3 and parts[2] in contract(parts[1]))
                assert entered, (
                    f"{file} imports {inside}, which is not in the contract of {parts[1]}"
                )
                yield f"{parts[1]}.__init__"
            else:
                ends = (".".join(parts[1:n]) for n in range(len(parts), 0, -1))
                yield next(
                    end
                    for e in ends
                    if (end := e if e in FILES else f"{e}.__init__".lstrip(".")) in FILES
                )


@pytest.mark.parametrize("file", FILES)
def test_arrows_run_down(file: str) -> None:
    for other in imported(file):
        assert room(other) == room(file) or LEVEL[room(other)] < LEVEL[room(file)], (
            f"{file} imports {other}"
        )


def test_no_circle() -> None:
    try:
        TopologicalSorter({file: list(imported(file)) for file in FILES}).prepare()
    except CycleError as circle:
        pytest.fail(" <- ".join(circle.args[1]))


@pytest.mark.parametrize("file", FILES)
def test_only_named_files_edit_graphs_and_modules(file: str) -> None:
    attributes = [
        n for n in ast.walk(ast.parse(FILES[file].read_text())) if isinstance(n, ast.Attribute)
    ]
    calls = {n.attr for n in attributes if n.attr in CALLS}
    written = {n.attr for n in attributes if n.attr in WRITTEN and isinstance(n.ctx, ast.Store)}
    assert bool(calls | written) == (file in EDITORS), (
        f"{file} edits: {calls | written or 'nothing (any more)'}"
    )


def test_rooms_and_files_are_few_and_short() -> None:
    beside = {"__init__.py", "__main__.py", "__pycache__", "py.typed"}
    assert len({path.name for path in HOME.iterdir()} - beside) <= 16
    long = {
        file: n for file, path in FILES.items() if (n := len(path.read_text().splitlines())) > 300
    }
    assert not long


@pytest.mark.parametrize("name", ["eliminate", "Surgery", "ops", "detection", "plot"])
def test_every_part_can_be_imported_first(name: str) -> None:
    """In a process of its own: what it needs, such as torchvision's operators, it imports."""
    code = f"import stridesurgery; stridesurgery.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
