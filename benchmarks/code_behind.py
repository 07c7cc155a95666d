"""Digits that change with the code behind a number, so that no kept number is stale.

What lies behind a definition of a script is followed name by name; what lies behind a module
of the library is the whole module and what that imports, by its source. Comments, docstrings
and annotations do not count, nor does where something stands in a file. Not followed: methods
of objects that are handed in as arguments, and modules that a package imports for their effect
alone; name those among the roots.
"""

import ast
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

OURS = ("projections", "influence", "selection", "gradsift")
NUMERIC = ("torch", "numpy", "scipy", "scikit-learn", "transformers")
FOLDER = Path(__file__).parent


def code_behind(*roots: str) -> str:
    """Return digits of the code of some definitions and of all that they call upon.

    Args:
        roots: As ``module:name``, such as ``attribution_methods:ekfac``; or
            ``module:TABLE[key]`` for one entry of a dictionary; or a module of the library.
    """
    found = Found()
    for root in roots:
        found.add(root)
    digest = sha256("".join(f"{name} {version(name)} " for name in NUMERIC).encode())
    for name, text in sorted(found.parts.items()):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Found:
    """Code that has been met, by where it is from."""

    parts: dict[str, str] = field(default_factory=dict)

    def add(self, root: str) -> None:
        """Add what a root names; see `code_behind`."""
        module, _, name = root.partition(":")
        table, _, key = name.partition("[")
        if not name:
            self.add_module(module)
        elif key:
            self.add_nodes(module, entry(module, table, key.removesuffix("]")))
        else:
            self.add_name(module, name)

    def add_module(self, module: str) -> None:
        """Add a module of the library, and all that it imports from the library."""
        if module not in self.parts:
            self.parts[module] = whole_text(module)
            for other, name in imports(module).values():
                if other.partition(".")[0] in OURS:
                    self.add_module(origin(other, name))

    def add_name(self, module: str, name: str) -> None:
        """Add a top-level name of a script, and all that it calls upon."""
        key = f"{module}:{name}"
        if key in self.parts:
            return
        imported = imports(module)
        if name in imported:
            self.add_imported(*imported[name])
        elif name in definitions(module):
            self.parts[key] = ""
            self.add_nodes(module, definitions(module)[name])

    def add_imported(self, module: str, name: str) -> None:
        """Add what a script imports, if it is ours."""
        if module.partition(".")[0] in OURS:
            self.add_module(origin(module, name))
        elif (FOLDER / f"{module}.py").exists() and name:
            self.add_name(module, name)
        elif (FOLDER / f"{module}.py").exists():
            for one in definitions(module):
                self.add_name(module, one)

    def add_nodes(self, module: str, node: ast.AST) -> None:
        """Add an expression or a definition, and the names in it."""
        bare = Bare().visit(deepcopy(node))
        text = ast.unparse(bare)
        self.parts[f"{module}:{sha256(text.encode()).hexdigest()[:12]}"] = text
        for name in {one.id for one in ast.walk(bare) if isinstance(one, ast.Name)}:
            self.add_name(module, name)


class Bare(ast.NodeTransformer):
    """Leaves out what does not change what code does: docstrings and annotations."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.visit_ClassDef(node)

    def visit_ClassDef(self, node: ast.ClassDef | ast.FunctionDef | ast.Module) -> ast.AST:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        return self.generic_visit(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self.visit_ClassDef(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(...)
        return self.generic_visit(node)


@cache
def whole_text(module: str) -> str:
    """Return a module as text, without comments, docstrings and annotations."""
    return ast.unparse(Bare().visit(ast.parse(source(module))))


@cache
def parsed(module: str) -> ast.Module:
    """Return the tree of a module."""
    return ast.parse(source(module))


@cache
def source(module: str) -> str:
    """Return the source of a script of this folder or a module of the library."""
    script = FOLDER / f"{module}.py"
    if script.exists():
        return script.read_text()
    if module in sys.modules:
        path = sys.modules[module].__file__
    else:
        spec = find_spec(module)
        path = spec.origin if spec else None
    if path is None:
        raise ValueError(f"`roots` must be of modules with a source. Got {module!r}.")
    return Path(path).read_text()


@cache
def origin(module: str, name: str) -> str:
    """Return the module that a name of the library comes from in the end."""
    if not name:
        return module
    if is_module(f"{module}.{name}"):
        return f"{module}.{name}"
    found = imports(module).get(name)
    return module if found is None else origin(*found)


@cache
def is_module(name: str) -> bool:
    """Tell whether this is a module."""
    parent = name.rpartition(".")[0]
    spec = find_spec(parent)
    if spec is None or spec.submodule_search_locations is None:
        return False
    return find_spec(name) is not None


@cache
def imports(module: str) -> dict[str, tuple[str, str]]:
    """Return what each imported name of a module is: its module, and its name there."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                found[one.asname or one.name] = (node.module, one.name)
        elif isinstance(node, ast.Import):
            for one in node.names:
                found[one.asname or one.name] = (one.name, "")
    return found


@cache
def definitions(module: str) -> dict[str, ast.stmt]:
    """Return the statement that makes each top-level name of a script."""
    return {name: node for node in parsed(module).body for name in made_by(node)}


def made_by(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement makes."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))


def entry(module: str, table: str, key: str) -> ast.expr:
    """Return the value of a key of a dictionary that is written out.

    Raises:
        ValueError: There is none.
    """
    node = definitions(module).get(table)
    value = getattr(node, "value", None)
    for name, found in zip(getattr(value, "keys", ()), getattr(value, "values", ()), strict=True):
        if isinstance(name, ast.Constant) and name.value == key:
            return found
    raise ValueError(f"`roots` must name what is there. {module}.{table} has no {key!r}.")
