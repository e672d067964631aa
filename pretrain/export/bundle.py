"""Parts of this package as one Python file that needs none of it: the code that trained a model
travels with it, and there is no second copy to keep equal."""

import ast
import importlib.util
from pathlib import Path

_PACKAGE = "pretrain"


class _Module:
    """A module's top-level definitions and imports, by the name that each binds."""

    def __init__(self, name: str) -> None:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, name
        self.text = Path(spec.origin).read_text(encoding="utf-8")
        self.ours: dict[str, tuple[str, str]] = {}  # name -> (module, its name there)
        self.imports: dict[str, str] = {}  # name -> import statement
        self.definitions: dict[str, ast.stmt] = {}
        for node in ast.parse(self.text).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
                for alias in node.names:
                    self.ours[alias.asname or alias.name] = (node.module or "", alias.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    single: ast.stmt = ast.Import([alias])
                    if isinstance(node, ast.ImportFrom):
                        single = ast.ImportFrom(node.module, [alias], node.level)
                    self.imports[alias.asname or alias.name.split(".")[0]] = ast.unparse(single)
                    if isinstance(node, ast.Import) and alias.asname is None:
                        self.imports.setdefault(alias.name, ast.unparse(single))
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Name):
                            self.definitions[part.id] = node

    def source(self, node: ast.stmt) -> str:
        """A definition as written, decorators and the docstring below an assignment included."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        return "\n".join(self.text.splitlines()[first - 1 : node.end_lineno])


def bundle(roots: list[tuple[str, str]], title: str) -> str:
    """Source of a file that defines `roots`, (module, name) each, and all that they use of ours.

    ValueError where two modules define a name differently, or use a module of ours as a whole.
    """
    modules: dict[str, _Module] = {}
    imports: set[str] = set()
    written: dict[str, tuple[str, str]] = {}  # name -> where it is defined
    parts: list[str] = []
    done: set[tuple[str, int]] = set()

    def take(place: str, name: str) -> None:
        module = modules.setdefault(place, _Module(place))
        if name in module.ours:
            source, original = module.ours[name]
            if original != name:
                raise ValueError(f"{place} renames {original} of {source}: a bundle cannot")
            return take(source, name)
        if name in module.imports:
            imports.add(module.imports[name])
            return None
        node = module.definitions.get(name)
        if node is None or (place, node.lineno) in done:
            return None  # a builtin or a local name, or it is written already
        if name in written:
            raise ValueError(f"{place} and {written[name][0]} both define {name}: rename one")
        done.add((place, node.lineno))
        written[name] = (place, name)
        used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        for other in sorted(used - {name}, key=_sooner(module)):
            take(place, other)
        parts.append(module.source(node))
        return None

    for place, name in roots:
        take(place, name)
    head = f'"""{title}"""\n\n' + "\n".join(sorted(imports))
    return head + "\n\n\n" + "\n\n\n".join(parts) + "\n"


def _sooner(module: _Module):  # type: ignore[no-untyped-def]
    """Order of a module's names in its file."""

    def line(name: str) -> tuple[int, str]:
        node = module.definitions.get(name)
        return (node.lineno if node is not None else 0, name)

    return line
