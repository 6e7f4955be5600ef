"""The messages of the package, read from its source, and the entries of docs/troubleshooting.md.

A message is a pattern: what a function fills in is a hole. An entry is a pattern as well, with
``...`` for anything, of how messages begin; the name of the function that a message begins with is
left out. Helpers that make messages for others, such as those of gankernels/_checks.py, count as
one message, whoever calls them.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from support import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
#: What stands for a hole.
HOLE = "\N{HORIZONTAL ELLIPSIS}"
#: Functions that warn, log or end a program, and the position of the message among their arguments.
TELLS = {"warn": 0, "warn_once": 1, "warning": 0, "_stay_eager": 1, "exit": 0, "Missing": 0}
#: Variables and keywords that hold why something is missing, which logs and reports show.
REASONS = {"reason", "left_out"}
#: Arguments that are messages in parts: who is called, and what the message is around them.
PARTS = {
    "listed_scores": (1, "{}: expected {}"),
}


@dataclass(frozen=True)
class Message:
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


def messages() -> list[Message]:
    """Those of every module of the package, of its installation, and of the extension modules."""
    installs = [ROOT / "setup.py", ROOT / "build_support" / "cuda.py"]
    found = []
    for path in [*sorted((ROOT / "gankernels").rglob("*.py")), *installs]:
        if path.name != "_build_info.py":
            found += messages_of(path.read_text(), str(path.relative_to(ROOT)))
    for folder in ("bindings", "common", "cpu", "cuda"):
        for path in sorted((ROOT / "csrc" / folder).rglob("*.*")):
            if path.suffix != ".md":
                found += cpp_messages_of(path.read_text(), str(path.relative_to(ROOT)))
    return found


def messages_of(source: str, name: str) -> list[Message]:
    """Those of a module: of what it raises, warns of and logs."""
    tree = ast.parse(source)
    return [
        Message(f"{name}:{node.lineno}", without_name(text))
        for scope, node in nodes(tree)
        for text in dict.fromkeys(texts(scope, node))
    ]


#: What says something in C++, up to its first argument: a check, a result, an error of Python.
SAYS = re.compile(r'STD_TORCH_CHECK\(|PyErr_(?:SetString|Format)\(|return (?=")')
LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)"')


def cpp_messages_of(source: str, name: str) -> list[Message]:
    """Those of a file of C++: of checks, of what launchers return, and of Python's errors."""
    found = []
    for match in SAYS.finditer(source):
        parts = arguments(source[match.end() :])
        skipped = 0 if match[0].startswith("return") else 1  # the condition, or the type
        text = "".join(
            "".join(LITERAL.findall(part)) if LITERAL.match(part) else HOLE
            for part in parts[skipped:]
        )
        # A word alone is a name; and there are words besides what all begin with.
        if " " in text.strip() and re.search("[a-z]{2}", text.replace("expected", "")):
            line = source.count("\n", 0, match.start()) + 1
            found.append(Message(f"{name}:{line}", without_name(text)))
    return found


def arguments(source: str) -> list[str]:
    """The expressions up to the parenthesis, or the semicolon, that ends them."""
    parts, depth, begin, i = [], 0, 0, 0
    while True:
        if source[i] == '"':
            literal = LITERAL.match(source, i)
            assert literal is not None
            i = literal.end()
            continue
        depth += (source[i] in "([{") - (source[i] in ")]}")
        if depth < 0 or (depth == 0 and source[i] in ",;"):
            parts.append(source[begin:i].strip())
            begin = i + 1
        if depth < 0 or (depth == 0 and source[i] == ";"):
            return parts
        i += 1


Scope = tuple[ast.AST, ...]


def nodes(tree: ast.AST, scope: Scope = ()) -> Iterator[tuple[Scope, ast.AST]]:
    """Every node, and the module and functions that it is in, the inner ones first."""
    inner = (ast.Module, ast.FunctionDef)
    scope = (tree, *scope) if isinstance(tree, inner) else scope
    for node in ast.iter_child_nodes(tree):
        yield scope, node
        yield from nodes(node, scope)


def texts(scope: Scope, node: ast.AST) -> list[str]:
    """The messages of a statement or call; several where a variable has several."""
    if isinstance(node, ast.Assign):
        return [
            text
            for target, value in zip(*map(parts_of, (node.targets[0], node.value)), strict=False)
            if ast.unparse(target) in REASONS
            for text in spelled(scope, value)
        ]
    if isinstance(node, ast.keyword) and node.arg in REASONS:
        return spelled(scope, node.value)
    if not isinstance(node, ast.Call):
        return []
    if any(getattr(function, "name", "") in PARTS for function in scope):
        return []  # of whoever calls it
    called = ast.unparse(node.func).rpartition(".")[2]
    if called.endswith("Error") and node.args:
        return spelled(scope, node.args[0])
    if called in PARTS:
        position, around = PARTS[called]
        return [around.format(HOLE, text) for text in spelled(scope, node.args[position])]
    position = TELLS.get(called)
    return [] if position is None else spelled(scope, node.args[position])


def parts_of(node: ast.AST) -> list[ast.AST]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def spelled(scope: Scope, node: ast.AST) -> list[str]:
    """The strings that an expression may be, with holes; none where it is nothing but holes, as
    whoever computes these has the message.
    """
    if isinstance(node, ast.Constant) and not isinstance(node.value, str):
        return []
    return [text for text in variants(scope, node) if re.search("[a-z]{2}", text)]


def variants(scope: Scope, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        parts = (
            value.value if isinstance(value, ast.FormattedValue) else value for value in node.values
        )
        return joined(scope, parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return joined(scope, (node.left, node.right))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return [re.sub("%[sd]", HOLE, text) for text in variants(scope, node.left)]
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in variants(scope, value)]
    if isinstance(node, ast.Name):
        return assigned(scope, node.id)
    return [HOLE]


def joined(scope: Scope, parts: Iterator[ast.AST] | tuple[ast.AST, ...]) -> list[str]:
    choices = [variants(scope, part) for part in parts]
    return ["".join(choice) for choice in itertools.product(*choices)]


def assigned(scope: Scope, name: str) -> list[str]:
    """The strings that a variable is given in the innermost function that gives it any."""
    if name == "op":  # the name of the function that a message begins with
        return [HOLE]
    for i, place in enumerate(scope):
        # Of a module its constants, not the variables of its functions.
        inside = place.body if isinstance(place, ast.Module) else ast.walk(place)
        values = [
            node.value
            for node in inside
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and name in [ast.unparse(x) for x in getattr(node, "targets", [node])]
            and isinstance(node.value, (ast.JoinedStr, ast.Constant, ast.BinOp))
            and isinstance(getattr(node.value, "value", ""), str)
        ]
        if values:
            return [text for value in values for text in variants(scope[i:], value)]
    return [HOLE]


def without_name(text: str) -> str:
    """A message without the name of the function that it begins with."""
    text = text.replace("%s", HOLE)
    return re.sub(rf"^[{HOLE}\w.]+: ", "", text)


# --- the page -------------------------------------------------------------------------------------


def entries(page: str) -> list[str]:
    """The patterns of a page: lines of code that an item of a list begins with."""
    found = re.findall(r"^(?:- |  )(`{1,2})(.+?)\1(?: \\)?$", page, re.MULTILINE)
    return [text.strip() if len(ticks) > 1 else text for ticks, text in found]


def matches(entry: str, message: str) -> bool:
    """Whether a message begins as an entry says."""
    pattern = ".*".join(re.escape(part) for part in entry.split("..."))
    return re.match(pattern, message, re.DOTALL) is not None


def main() -> None:
    """Prints the messages that have no entry."""
    known = entries(PAGE.read_text()) if PAGE.exists() else []
    for message in messages():
        if not any(matches(entry, message.text) for entry in known):
            print(message)


if __name__ == "__main__":
    main()
