"""The syntax of expressions: a tree of Python's own parser into energies, without eval.

Precedence is Python's. A walker over the tree accepts the algebra, numbers and the functions of
`poe.io.functions`, and refuses anything else with a caret under the place.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from poe.algebra.energy import Energy
from poe.io.functions import FUNCTIONS, is_number, kind
from poe.registry import PoeError, near

MAX_LENGTH = 100_000  # characters of a text
MAX_DEPTH = 60  # levels of brackets and of different operators
MAX_CHAIN = 600  # equal operators in a row that nest, as in a - b - c
MAX_NUMBER = 1e300

# the sign of an operator in messages, and what it does
_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
    ast.Pow: ("**", operator.pow),
    ast.Div: ("/", operator.truediv),
    ast.Sub: ("-", operator.sub),
    ast.MatMult: ("@", operator.matmul),
    ast.Add: ("+", operator.add),  # these are refused by energies, with a hint
    ast.Mult: ("*", operator.mul),
    ast.BitXor: ("^", operator.xor),
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Invert: operator.invert,
    ast.USub: operator.neg,  # these two are refused by energies, with a hint
    ast.Not: bool,
}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
_ALLOWED = (
    "an expression takes experts, & | ** / ~ - @, numbers, and functions such as "
    "poe.mixture([a, b])"
)


class ExpressionError(PoeError, ValueError):
    """Text that is not an expression over the known names; the message has a caret under the place
    of the error.

    Attributes:
        column: the number of characters before that place; None where the error concerns the whole
            text.
    """

    def __init__(self, message: str, column: int | None = None) -> None:
        super().__init__(message)
        self.column = column


def read(text: str, names: Mapping[str, Any]) -> Energy:
    """The energy that `text` stands for over these names. Raises ExpressionError."""
    if not isinstance(text, str):
        raise ExpressionError(f"an expression is text, not {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            f"the expression is {len(text):,} characters long; at most {MAX_LENGTH:,} are read"
        )
    start = len(text) - len(text.lstrip())
    line = re.sub(r"\s", " ", text).strip()
    try:
        return _Reader(line, names).energy(_tree(line))
    except ExpressionError as error:
        error.column = None if error.column is None else start + error.column
        raise


def _tree(line: str) -> ast.expr:
    if not line:
        raise ExpressionError(f"the expression is empty: {_ALLOWED}")
    if "#" in line:
        _fail("a comment is not allowed in an expression", line, line.index("#"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd literals, which are refused anyway
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        _fail(f"cannot read the expression: {error.msg}", line, (error.offset or 1) - 1, error)
    except (RecursionError, MemoryError) as error:
        raise ExpressionError("the expression is nested too deep") from error
    except ValueError as error:  # a null byte or half a surrogate pair
        raise ExpressionError(f"cannot read the expression {line[:60]!r}: {error}") from error


class _Reader:
    """Turns the syntax tree of one text into values: energies, maps, numbers, powers, and lists of
    them."""

    def __init__(self, line: str, names: Mapping[str, Any]) -> None:
        self.line = line
        self.names = names
        self.loaded: dict[str, Any] = {}  # a name that stands twice is one expert

    def energy(self, tree: ast.expr) -> Energy:
        value = self.value(tree, 0)
        if not isinstance(value, Energy):
            self.fail(f"the expression is {kind(value)}, not an energy", tree)
        return value

    def value(self, node: ast.AST, depth: int) -> Any:
        if depth > MAX_DEPTH:
            self.fail("the expression is nested too deep", node)
        match node:
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                return self.binary(node, depth)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return self.unary(node, _UNARY[type(op)], operand, depth)
            case ast.BoolOp(values=[operand, *_]):
                return self.unary(node, bool, operand, depth)
            case ast.Constant(value=int() | float() | None as number):
                return self.constant(number, node)
            case ast.Name() | ast.Attribute():
                return self.lookup(node)
            case ast.Call():
                return self.call(node, depth)
            case ast.List(elts=items):
                return [self.value(item, depth + 1) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item, depth + 1) for item in items)
        self.fail(
            f"`{ast.get_source_segment(self.line, node)}` is not allowed here: {_ALLOWED}", node
        )

    def constant(self, number: int | float | None, node: ast.Constant) -> int | float | None:
        if number is not None and not abs(number) < MAX_NUMBER:
            self.fail("numbers must be finite", node)
        return number

    def unary(
        self, node: ast.AST, function: Callable[[Any], Any], operand: ast.expr, depth: int
    ) -> Any:
        value = self.operand(operand, depth)
        if isinstance(value, Energy) or (is_number(value) and function is operator.neg):
            return self.apply(node, function, value)
        self.fail(f"~, -, and, or, not cannot be applied to {kind(value)}: {_ALLOWED}", node)

    def binary(self, node: ast.BinOp, depth: int) -> Any:
        """`a & b & c & ...` may be long: a loop, not recursion, follows the left side of equal
        operators."""
        chain = [node]
        while isinstance(chain[-1].left, ast.BinOp) and type(chain[-1].left.op) is type(node.op):
            chain.append(chain[-1].left)
        if len(chain) > MAX_CHAIN and not isinstance(node.op, ast.BitAnd | ast.BitOr):
            self.fail("the expression is nested too deep", node)  # those two make flat nodes
        sign, function = _OPERATORS[type(node.op)]
        value = self.operand(chain[-1].left, depth)
        for link in reversed(chain):
            right = self.operand(link.right, depth)
            if is_number(value) and is_number(right):
                value = self.arithmetic(link, value, right)
            elif isinstance(value, Energy) or isinstance(right, Energy):
                value = self.apply(link, function, value, right)
            else:
                pair = f"{kind(value)} and {kind(right)}"
                self.fail(f"{sign} cannot combine {pair}: {_ALLOWED}", link)
        return value

    def arithmetic(self, node: ast.BinOp, left: float, right: float) -> float:
        sign, function = _OPERATORS[type(node.op)]
        if not isinstance(node.op, _ARITHMETIC):
            self.fail(f"{sign} combines energies, not numbers", node)
        try:
            value = function(float(left), float(right))
        except ZeroDivisionError as error:
            self.fail(str(error), node, error)
        except OverflowError:
            value = math.inf
        if isinstance(value, complex) or not abs(value) < MAX_NUMBER:
            self.fail("numbers must be real and finite", node)
        return value

    def operand(self, node: ast.expr, depth: int) -> Any:
        value = self.value(node, depth + 1)
        if isinstance(value, list | tuple | bool | None):
            self.fail(f"{kind(value)} is allowed only as an argument of a function", node)
        return value

    def lookup(self, node: ast.expr) -> Any:
        name = _dotted(node)
        if name is None:
            self.fail(f"an attribute of a value is not allowed here: {_ALLOWED}", node)
        if name not in self.loaded:
            self.loaded[name] = self.find(name, node)
        return self.loaded[name]

    def find(self, name: str, node: ast.expr) -> Any:
        if name in self.names:
            return self.named(name, node)
        # as Python reads identifiers
        known = {unicodedata.normalize("NFKC", key): key for key in self.names}
        if name in known:
            return self.named(known[name], node)
        if _short(name) in FUNCTIONS:
            self.fail(f"{name} is a function here: {_short(name)}(...)", node)
        hint = near(name, known) or f"; known: {', '.join(sorted(known)[:20]) or 'none'}"
        self.fail(f"unknown name {name!r}{hint}", node)

    def named(self, name: str, node: ast.expr) -> Any:
        try:
            return self.names[name]
        except ValueError as error:  # a damaged file of the zoo
            self.fail(str(error), node, error)

    def call(self, node: ast.Call, depth: int) -> Any:
        name = _dotted(node.func)
        function = None if name is None else FUNCTIONS.get(_short(name))
        if function is None:
            known = f"; the functions are {', '.join(FUNCTIONS)}"
            hint = near(_short(name or ""), FUNCTIONS) or known
            self.fail(f"{name or 'a value'} cannot be called here{hint}", node)
        arguments = [self.value(argument, depth + 1) for argument in node.args]
        keywords = {}
        for word in node.keywords:
            if word.arg is None or word.arg in keywords:
                self.fail("each argument is given once, and `**` is not supported", word.value)
            keywords[word.arg] = self.value(word.value, depth + 1)
        return self.apply(node, functools.partial(function, **keywords), *arguments)

    def apply(self, node: ast.AST, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)`; an error of the algebra becomes one that points at the place."""
        try:
            return function(*arguments)
        except Exception as error:
            self.fail(str(error) or type(error).__name__, node, error)

    def fail(self, message: str, node: ast.AST, cause: Exception | None = None) -> NoReturn:
        place = getattr(node, "col_offset", 0)
        if isinstance(node, ast.BinOp) and node.left.end_col_offset is not None:
            place = node.left.end_col_offset
            behind = self.line.encode()[place:].decode()
            place += len(behind) - len(behind.lstrip(" )"))
        column = len(self.line.encode()[:place].decode())
        _fail(message, self.line, column, cause)


def _fail(message: str, line: str, column: int, cause: Exception | None = None) -> NoReturn:
    first = max(0, min(column, len(line)) - 60)
    shown = line[first : first + 100]
    raise ExpressionError(
        f"{message}\n    {shown}\n    {' ' * (min(column, len(line)) - first)}^", column
    ) from cause


def _dotted(node: ast.expr) -> str | None:
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return ".".join(reversed([*words, node.id])) if isinstance(node, ast.Name) else None


def _short(name: str) -> str:
    return re.sub(r"^(poe|torch\.nn|nn|torch)\.", "", name)
