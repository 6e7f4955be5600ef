"""Why torch could not compile a step, in words: the line, what stops it, and what to do."""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Any, NamedTuple

#: What is looked for in torch's words, and what to do about it.
_CURES = (
    (r"generator=|Generator", "pass generator=None: torch compiles no generator"),
    (
        r"[Dd]ata-dependent|\.item\(|Tensor\.item|\.tolist|local_scalar|symbolic|nonzero",
        "decide by torch.where, or before the step and pass the decision in: compiled code does "
        "not read a tensor's value to choose what Python does",
    ),
    (
        r"trace_autograd_ops|autograd\.grad",
        "take gradients by torch.autograd.grad from tensors that this function makes, and let it "
        "return the loss: what is differentiated within the step is not to be returned with a "
        "graph",
    ),
    (r"backward\(", "leave out backward(): the step takes the gradients of the loss that it gets"),
    (
        r"recompile|cache_size_limit",
        "shapes or settings differ from call to call: pass dynamic=True, or keep numbers that "
        "change in tensors",
    ),
    (r"[Cc]\+\+ compiler|CppCompile|Triton|triton", 'mend torch\'s compiler, or pass '
     'backend="aot_eager", which needs none'),
    (r"print|logging|warn", "log from what the step returns"),
)  # fmt: skip
_DEFAULT = "move it out of the function and pass its result in, or compile without it"


class Reason(NamedTuple):
    where: str  # the line, or ""
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.what}{self.where}; {self.cure}"


def reason_of(error: BaseException) -> Reason:
    text, where = str(error), _place(error)
    return Reason(where, _what(error, text), _cure(text, where))


def _what(error: BaseException, text: str) -> str:
    """torch's first line and explanation, without its advice to developers."""
    inner = getattr(error, "inner_exception", None)
    if inner is not None:
        return f"{type(inner).__name__}: {_first(str(inner))}"
    explanation = re.search(r"Explanation: (.+)", text)
    first = _first(text)
    return f"{first} ({explanation[1].rstrip('. ')})" if explanation else first


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no words"


def _cure(text: str, where: str) -> str:
    # Of the line and the words before the stack, in which anything may be written.
    words = where + text.partition("\nfrom user code")[0]
    return next((cure for pattern, cure in _CURES if re.search(pattern, words)), _DEFAULT)


def _place(error: BaseException) -> str:
    stack: Any = getattr(error, "real_stack", None)
    frames = list(stack) if stack else traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_users(frame.filename)]
    if not own:
        return ""
    frame = own[-1]
    line = f": {frame.line.strip()}" if frame.line else ""
    return f", at line {frame.lineno} of {os.path.basename(frame.filename)}{line}"


def _is_users(path: str) -> bool:
    """Whether code is of neither torch nor this package nor Python itself."""
    path = os.path.abspath(path)
    roots = [os.path.dirname(os.path.abspath(sys.modules[m].__file__ or "")) for m in _LIBRARIES]
    roots.append(os.path.dirname(os.path.abspath(os.__file__)))
    inside = [path.startswith(root + os.sep) for root in roots]
    # Packages are installed below Python's own folder; those are users of ours all the same.
    inside[-1] = inside[-1] and "site-packages" not in path
    return not any(inside) and not path.endswith(">")


_LIBRARIES = ("torch", __name__.partition(".")[0])
