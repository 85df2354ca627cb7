"""The import rules: read from the sources, by one checker, which is itself fed sources that break each rule."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import rematpass

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "rematpass").rglob("*.py"))

# group -> the groups it may import from besides itself; a group is a directory, or some of the files beside them
MAY_USE = {
    "the first files": (),
    "core": ("the first files",),
    "report": ("the first files", "core"),
    "compiler": ("the first files", "core", "report"),
    "lab": ("the first files", "core", "report", "compiler"),
    "the commands": ("the first files", "core", "report", "compiler", "lab"),
}
FIRST_FILES = ("rematpass.errors", "rematpass.units", "rematpass.budget", "rematpass.config")
WITHOUT_TORCH = ("the first files", "core", "report")
LOADS_TORCH = ("compiler", "lab")
# compiler/_torch knows for which devices torch runs an op again; lab/models/names.py lists devices without torch.
KNOW_DEVICES = ("compiler/devices/", "compiler/_torch/", "lab/models/names.py")
ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}


class Import(NamedTuple):
    name: str  # dotted, with the imported name: "rematpass.core.graph.JointGraph"
    line: int
    in_function: bool


def modules_on(the_map: str) -> list[str]:
    """Modules in the order in which the docstring of ``rematpass`` lists them."""
    modules, directories = [], ["rematpass"]
    for indent, entry in re.findall(r"^ {4}( *)([a-z0-9_]+(?:\.py|/)) ", the_map, re.MULTILINE):
        del directories[1 + len(indent) // 2 :]
        if entry.endswith("/"):
            directories.append(entry[:-1])
        else:
            modules.append(".".join([*directories, entry.removesuffix(".py")]))
    return modules


MAP = modules_on(rematpass.__doc__)


def module_of(path: str) -> str:
    """The dotted name of a file below ``rematpass/``: "core/graph.py" is rematpass.core.graph."""
    return ".".join(["rematpass", *Path(path).with_suffix("").parts]).removesuffix(".__init__")


EXISTING = {module_of(source.relative_to(ROOT / "rematpass").as_posix()): source for source in SOURCES}


def group_of(module: str) -> str:
    if module in FIRST_FILES:
        return "the first files"
    directory = module.split(".")[1:2]
    return directory[0] if directory and directory[0] in MAY_USE else "the commands"


def imports(tree: ast.Module, path: str) -> Iterator[Import]:
    """Every import, wherever it stands, whether by statement or by a call with a constant."""
    package = ["rematpass", *Path(path).parts[:-1]]

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno, in_function) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) + 1 - level], *filter(None, [module])] if level else [module]
                yield from (Import(".".join([*base, alias.name]), node.lineno, in_function) for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    return visit(tree, False)


def complaints(path: str, source: str) -> list[str]:
    """What the file ``path`` (below ``rematpass/``) does and may not do, one line each."""
    tree = ast.parse(source)
    found = [f"{path}: {reason}" for reason in of_the_map(path)]
    if path != "config.py":
        found += [f"{path}:{line}: {reason}" for line, reason in of_the_environment(tree)]
    if not path.startswith("compiler/_torch/"):
        found += [f"{path}:{line}: {reason}" for line, reason in of_private_torch(path, tree)]
    if path.startswith(("compiler/", "lab/")) and not path.startswith(KNOW_DEVICES):
        found += [f"{path}:{line}: {reason}" for line, reason in of_devices(tree)]
    if path != "__init__.py":  # it names everything, but only to type checkers: the subprocess tests check that
        found += [f"{path}:{it.line}: {reason}" for it in imports(tree, path) for reason in of_import(path, it)]
    return found


def of_the_map(path: str) -> Iterator[str]:
    """A directory whose files are not listed has no order; each directory has to be known."""
    module, parents = module_of(path), Path(path).parts[:-1]
    listed = any(m.rpartition(".")[0] == module.rpartition(".")[0] for m in MAP)
    unknown = bool(parents) and parents[0] not in {*MAY_USE, "commands"}
    if unknown or (listed and module not in MAP and Path(path).name != "__init__.py"):
        yield "is not on the map in rematpass/__init__.py; give it its place in the order"


def of_the_environment(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            names = [alias.name for alias in node.names]
        for name in ENVIRONMENT.intersection(names):
            yield node.lineno, f"uses os.{name}; only config.py does"


def of_private_torch(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    used = [(it.name, it.line) for it in imports(tree, path) if it.name.split(".")[0] == "torch"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            used.append((f"torch.{node.attr}", node.lineno))
    for name, line in used:
        if any(re.match("_(?!_)", part) for part in name.split(".")):
            yield line, f"uses {name}; only compiler/_torch/ touches private torch"


def of_devices(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What differs between devices is asked of ``compiler/devices``; docstrings may speak of CUDA."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings and re.search(r"\bcuda\b", text):
                yield node.lineno, "names cuda; only compiler/devices/ knows kinds of devices"
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda"):
                yield node.lineno, "uses torch.cuda; only compiler/devices/ knows kinds of devices"
            case ast.Import(names=names) if any(f"{alias.name}.".startswith("torch.cuda.") for alias in names):
                yield node.lineno, "imports torch.cuda; only compiler/devices/ knows kinds of devices"
            case ast.ImportFrom(module=module, names=names) if any(
                f"{module}.{alias.name}.".startswith("torch.cuda.") for alias in names
            ):
                yield node.lineno, "imports torch.cuda; only compiler/devices/ knows kinds of devices"


def of_import(path: str, it: Import) -> Iterator[str]:
    me, root = module_of(path), it.name.split(".")[0]
    mine = group_of(me)
    if root == "torch":
        if mine in WITHOUT_TORCH:
            yield f"imports {it.name}; {mine} may not"
        elif mine == "the commands" and not it.in_function:
            yield f"imports {it.name} when it is loaded; do so inside a function"
    if root != "rematpass" or it.name == "rematpass.__version__":
        return
    target = max((m for m in {*MAP, *EXISTING} if f"{it.name}.".startswith(f"{m}.")), key=len)
    its = group_of(target)
    if target == "rematpass":
        yield f"imports {it.name}; take it from the module it lives in"
    elif its not in (mine, *MAY_USE[mine]):
        yield f"imports {it.name}; {mine} may not"
    elif mine == "the commands" and its in LOADS_TORCH and not it.in_function:
        yield f"imports {it.name} when it is loaded; do so inside a function"
    elif its == mine and me in MAP and target in MAP and MAP.index(target) >= MAP.index(me):
        yield f"imports {it.name}, which is not above it on the map"


@pytest.mark.parametrize("module", EXISTING)
def test_every_file_keeps_the_rules(module):
    source = EXISTING[module]
    assert complaints(source.relative_to(ROOT / "rematpass").as_posix(), source.read_text("utf-8")) == []


OFFENDERS = [
    ("core/graph.py", "import torch", "1: imports torch; core may not"),
    ("core/graph.py", "import json, torch.fx", "1: imports torch.fx; core may not"),
    ("core/cost.py", "def f():\n    from torch import fx", "2: imports torch.fx; core may not"),
    ("core/cost.py", "if TYPE_CHECKING:\n    import torch", "2: imports torch; core may not"),
    ("core/cost.py", "importlib.import_module('torch.fx')", "1: imports torch.fx; core may not"),
    ("core/cost.py", "x = __import__('torch')", "1: imports torch; core may not"),
    ("core/solve/mincut.py", "import torch", "1: imports torch; core may not"),
    ("report/summary.py", "import torch", "1: imports torch; report may not"),
    ("units.py", "import torch", "1: imports torch; the first files may not"),
    ("__main__.py", "import torch", "1: imports torch when it is loaded; do so inside a function"),
    ("cli.py", "import torch", "1: imports torch when it is loaded; do so inside a function"),
    (
        *("cli.py", "from rematpass.lab.measure.memory_and_time import peak"),
        "1: imports rematpass.lab.measure.memory_and_time.peak when it is loaded; do so inside a function",
    ),
    (
        *("compiler/emit.py", "import torch._inductor.config"),
        "1: uses torch._inductor.config; only compiler/_torch/ touches private torch",
    ),
    (
        *("compiler/emit.py", "from torch import _inductor"),
        "1: uses torch._inductor; only compiler/_torch/ touches private torch",
    ),
    (
        *("lab/measure/memory_and_time.py", "def f():\n    from torch.utils import _pytree"),
        "2: uses torch.utils._pytree; only compiler/_torch/ touches private torch",
    ),
    (
        *("compiler/emit.py", "import torch\nx = torch._C._foo"),
        "2: uses torch._C; only compiler/_torch/ touches private torch",
    ),
    ("core/graph.py", "import rematpass.compiler.emit", "1: imports rematpass.compiler.emit; core may not"),
    ("core/graph.py", "from rematpass import lab", "1: imports rematpass.lab; core may not"),
    ("core/graph.py", "from ..report import summary", "1: imports rematpass.report.summary; core may not"),
    ("core/graph.py", "from rematpass.cli import main", "1: imports rematpass.cli.main; core may not"),
    (
        "report/summary.py",
        "from rematpass.lab import measure",
        "1: imports rematpass.lab.measure; report may not",
    ),
    (
        "compiler/emit.py",
        "from rematpass.lab import measure",
        "1: imports rematpass.lab.measure; compiler may not",
    ),
    (
        *("units.py", "from rematpass.core.graph import Op"),
        "1: imports rematpass.core.graph.Op; the first files may not",
    ),
    (
        *("units.py", "from rematpass.config import Config"),
        "1: imports rematpass.config.Config, which is not above it on the map",
    ),
    (
        *("core/graph.py", "from rematpass.core.schedule import Plan"),
        "1: imports rematpass.core.schedule.Plan, which is not above it on the map",
    ),
    (
        *("core/graph.py", "from . import schedule"),
        "1: imports rematpass.core.schedule, which is not above it on the map",
    ),
    (
        *("core/liveness.py", "from .solve.mincut import Cut"),
        "1: imports rematpass.core.solve.mincut.Cut, which is not above it on the map",
    ),
    (
        *("core/solve/mincut.py", "from ..frontier import Ladder"),
        "1: imports rematpass.core.frontier.Ladder, which is not above it on the map",
    ),
    (
        *("compiler/capture/joint_graph.py", "from rematpass.compiler.emit import emit"),
        "1: imports rematpass.compiler.emit.emit, which is not above it on the map",
    ),
    (
        *("core/graph.py", "from rematpass import Plan"),
        "1: imports rematpass.Plan; take it from the module it lives in",
    ),
    ("core/graph.py", "import rematpass", "1: imports rematpass; take it from the module it lives in"),
    ("lab/measure/memory_and_time.py", "import os\nos.environ['A']", "2: uses os.environ; only config.py does"),
    ("cli.py", "import os as o\no.getenv('A')", "2: uses os.getenv; only config.py does"),
    ("core/cost.py", "from os import environ as e", "1: uses os.environ; only config.py does"),
    (
        *("compiler/emit.py", "x = device.type == 'cuda'"),
        "1: names cuda; only compiler/devices/ knows kinds of devices",
    ),
    (
        *("lab/compare.py", "x = f'{name} on cuda:0'"),
        "1: names cuda; only compiler/devices/ knows kinds of devices",
    ),
    (
        *("lab/demo.py", "import torch\ntorch.cuda.synchronize()"),
        "2: uses torch.cuda; only compiler/devices/ knows kinds of devices",
    ),
    (
        *("compiler/inductor/dry_run.py", "import torch.cuda.memory"),
        "1: imports torch.cuda; only compiler/devices/ knows kinds of devices",
    ),
    (
        *("compiler/inductor/dry_run.py", "from torch import cuda, fx"),
        "1: imports torch.cuda; only compiler/devices/ knows kinds of devices",
    ),
    (
        *("lab/demo.py", "from torch.cuda import memory"),
        "1: imports torch.cuda; only compiler/devices/ knows kinds of devices",
    ),
]


@pytest.mark.parametrize(("path", "source", "complaint"), OFFENDERS)
def test_the_checker_reports_each_offence(path, source, complaint):
    assert complaints(path, source) == [f"{path}:{complaint}"]


@pytest.mark.parametrize("path", ["core/more.py", "core/solve/more.py", "compiler/more.py", "more.py", "more/more.py"])
def test_the_checker_wants_every_file_on_the_map(path):
    assert complaints(path, "") == [
        f"{path}: is not on the map in rematpass/__init__.py; give it its place in the order"
    ]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/schedule.py", "from rematpass.core.graph import Op\nfrom rematpass.errors import PlanError"),
        (
            "core/solve/mincut.py",
            "from rematpass.core.solve.schedule_late import schedule_late\nimport numpy, torchlike",
        ),
        ("core/frontier.py", "from rematpass.core.solve import mincut\nfrom .verify import verify"),
        ("config.py", "import os\nfrom rematpass.units import parse_bytes\nos.environ"),
        ("compiler/_torch/__init__.py", "import torch\nfrom torch._inductor import config\ntorch._C"),
        ("compiler/emit.py", "import torch.fx\ntorch.__version__\nfrom rematpass.core.schedule import Plan"),
        ("compiler/emit.py", "from rematpass.compiler import _torch\nfrom ..report import summary"),
        ("report/summary.py", "from rematpass import __version__\nfrom rematpass.core.simulate import Timeline"),
        (
            "lab/measure/memory_and_time.py",
            "import torch\nfrom rematpass.compiler.backend import remat\nfrom .models import llama",
        ),
        ("cli.py", "from rematpass.report import summary\ndef f():\n    import torch\n    from .lab import measure"),
        ("__main__.py", "from rematpass.cli import main"),
        ("compiler/devices/cuda.py", "import torch\nx = 'cuda', torch.cuda.current_device()"),
        ("lab/demo.py", "def f():\n    'Works on cuda.'\n    return 'cpu'"),
        ("commands/demo.py", "help = 'cpu or cuda'"),
    ],
)
def test_the_checker_lets_pass_what_is_right(path, source):
    assert complaints(path, source) == []


def test_the_map_is_read_in_its_order():
    assert modules_on("""Text.

    errors.py    one
    core/        two
      graph.py   three
      solve/     four
        cut.py   five
      last.py    six
    cli.py       seven
    """) == [f"rematpass.{m}" for m in ("errors", "core.graph", "core.solve.cut", "core.last", "cli")]
    assert {*FIRST_FILES, "rematpass.core.graph", "rematpass.core.solve.mincut", "rematpass.cli"} <= set(MAP)


def loads_torch(statements: str) -> bool:
    probe = f"import sys; {statements}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    return {"True\n": True, "False\n": False}[run.stdout]


def test_the_probe_notices_torch():
    assert loads_torch("import torch")


@pytest.mark.parametrize(
    "statements",
    [
        "import rematpass, rematpass.core.graph",
        "import rematpass; rematpass.Config, rematpass.JointGraph, rematpass.Plan, dir(rematpass)",
        "from rematpass import __version__",
    ],
)
def test_importing_the_package_does_not_load_torch(statements):
    assert not loads_torch(statements)


def test_no_module_but_those_that_may_loads_torch():
    modules = [m for m in EXISTING if group_of(m) not in LOADS_TORCH and m != "rematpass.__main__"]
    assert "rematpass.core.graph" in modules
    assert not loads_torch(f"import {', '.join(modules)}")


@pytest.mark.parametrize("name", rematpass.__all__)
def test_every_public_name_is_there(name):
    home = rematpass._HOMES.get(name, "rematpass")
    if home not in EXISTING:
        pytest.skip(f"{home} is not written yet")
    assert getattr(rematpass, name) is not None
    assert name in dir(rematpass)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'rematpass' has no attribute 'memory'$"):
        _ = rematpass.memory
