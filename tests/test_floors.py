"""The floors of the house: a room imports those below it, none beside or above, and no file imports in a circle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mmdd_ray"
FLOORS = (
    ("errors",),
    ("storage", "config"),
    ("engine", "models", "protocols"),
    ("data",),
    ("distilled", "features", "diffusion", "planning"),
    ("evaluation",),
    ("matching",),
    ("methods", "pretrain"),
    ("api", "cli"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(file: Path) -> Iterator[str]:
    """Names below the package of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            below = (node.module or "").partition(".")[2]
            yield from [below] if below else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.startswith(f"{PACKAGE.name}.")
            )


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_no_room_imports_one_beside_or_above_it() -> None:
    arrows = [
        (str(file.relative_to(PACKAGE)), name)
        for file in sorted(PACKAGE.rglob("*.py"))
        for name in imports(file)
        if (here := room_of(file)) in FLOOR
        and (there := name.partition(".")[0]) in FLOOR
        and here != there
        and FLOOR[there] >= FLOOR[here]
    ]
    assert arrows == []


def test_no_file_imports_in_a_circle() -> None:
    files = {_name(file): file for file in PACKAGE.rglob("*.py")}
    graph = {
        name: {module for module in _at_import(file) if module in files and module != name}
        for name, file in files.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


def _name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _at_import(file: Path) -> Iterator[str]:
    """Modules that a file imports when it is imported itself."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            below = (node.module or "").partition(".")[2]
            for alias in node.names:
                module = f"{below}.{alias.name}".lstrip(".")
                is_module = (PACKAGE / module.replace(".", "/")).exists() or (
                    PACKAGE / f"{module.replace('.', '/')}.py"
                ).exists()
                yield module if is_module else below


def test_every_file_is_in_a_room() -> None:
    rooms = {room_of(file) for file in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(FLOOR)


def test_methods_do_not_import_each_other() -> None:
    methods = PACKAGE / "methods"
    folders = {folder.name for folder in methods.iterdir() if (folder / "settings.py").exists()}
    arrows = [
        (str(file.relative_to(methods)), name)
        for own in folders
        for file in (methods / own).rglob("*.py")
        for name in imports(file)
        if name.startswith("methods.") and name.split(".")[1] in folders - {own}
    ]
    assert arrows == []
    assert {"edge", "covmatch", "vlcp"} <= folders
