"""Train-time filters: ``slice_mm <= 3 and contrast`` over the columns of the index.

A small part of Python's expressions, read with ``ast`` and never run as Python: comparisons, also
chained; ``and``, ``or``, ``not``, parentheses; numbers, strings, ``True``, ``False``; ``in`` with a
list; ``is None``; a column of truth values by itself. What is unknown is neither true nor false:
a comparison with it is unknown, ``not`` leaves it unknown (Kleene's three-valued logic, as in SQL),
and a sample is let through only where the whole is true.
"""

from __future__ import annotations

import ast
import difflib
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal, NoReturn, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool
from numpy import ndarray

from shards.errors import WhereError

MAX_CHARS = 4000
"""Of an expression: enough for a list of a hundred keys."""

Kind: TypeAlias = Literal["number", "text", "truth"]
Columns: TypeAlias = Mapping[str, pa.Array]
Test: TypeAlias = Callable[[Columns], pa.Array]
Number: TypeAlias = int | float


@dataclass(frozen=True)
class Column:
    """A name that a filter may use."""

    kind: Kind
    stored: str
    """Column of the index that it is, or is part of."""
    axis: int | None = None
    """Of a (z, y, x) column."""


COLUMNS = {
    **{name: Column("number", name) for name in ("slice_mm",)},
    **{f"shape_{a}": Column("number", "shape_zyx", n) for n, a in enumerate("zyx")},
    **{f"spacing_{a}": Column("number", "spacing_zyx_mm", n) for n, a in enumerate("zyx")},
    **{name: Column("text", name) for name in ("source", "kernel")},
    **{name: Column("text", name) for name in ("key", "subject_id", "study_id")},
    **{name: Column("truth", name) for name in ("contrast", "labelled", "trainable")},
}
"""All names. Units: mm and voxels; ``contrast`` may be unknown, the others are always known."""

_COMPARED = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
}


class Where:
    """A filter.

    Args:
        text: the expression; empty lets everything through.

    Attributes:
        text: the same in one form, whatever the spaces, quotes and parentheses were: for hashes.
        stored: columns of the index that it needs.

    Raises:
        WhereError: not such an expression.
    """

    def __init__(self, text: str) -> None:
        self.text, self.stored = "", frozenset[str]()
        self._test: Test | None = None
        if not text.strip():
            return
        tree = _parse(text.strip())
        try:
            self._test = _test(tree)
            self.text = ast.unparse(_Normal().visit(tree))
        except RecursionError:
            raise WhereError("where: nested too deeply") from None
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.stored = frozenset(COLUMNS[name].stored for name in names)

    def rows(self, stored: Mapping[str, pa.Array], n: int) -> Bool[ndarray, " n"]:
        """Which of ``n`` samples it lets through.

        Args:
            stored: the columns of the index named by ``stored``.
            n: samples.
        """
        if self._test is None:
            return np.ones(n, dtype=bool)
        columns = {
            name: _values(column, stored[column.stored])
            for name, column in COLUMNS.items()
            if column.stored in stored
        }
        found = pc.fill_null(self._test(columns), False)
        rows: Bool[ndarray, " n"] = found.to_numpy(zero_copy_only=False)
        return rows


def _values(column: Column, stored: pa.Array) -> pa.Array:
    """Numbers as float64, so that all compare alike; text as strings."""
    if column.axis is not None:
        stored = stored.flatten()[column.axis :: 3]
    kinds = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}
    return stored.cast(kinds[column.kind])


def _parse(text: str) -> ast.expr:
    if len(text) > MAX_CHARS:
        raise WhereError(f"where: {len(text)} characters; give {MAX_CHARS} at most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and literals: they parse or do not
            return ast.parse(text, mode="eval").body
    except SyntaxError as exc:
        raise WhereError(
            f"where: {exc.msg} at character {exc.offset or 1} of {_short(text)}; write for "
            "example: slice_mm <= 3 and contrast"
        ) from None
    except (ValueError, RecursionError, MemoryError):
        raise WhereError(f"where: {_short(text)} cannot be read") from None


def _test(node: ast.expr) -> Test:
    """What gives true, false or null for each sample."""
    match node:
        case ast.BoolOp(op=op, values=values):
            join = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            return _joined(join, [_test(value) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _test(operand)
            return lambda columns: pc.invert(inner(columns))
        case ast.Compare(left=left, ops=ops, comparators=others):
            pairs = zip([left, *others], ops, others, strict=False)
            return _joined(pc.and_kleene, [_pair(node, a, op, b) for a, op, b in pairs])
        case ast.Name(id=name):
            if _column(node).kind != "truth":
                _refuse(node, "is neither true nor false; compare it, as in slice_mm <= 3")
            return lambda columns: columns[name]
    _refuse(node, "is not a test; use comparisons, and, or, not, in [...], is None")


def _joined(join: Callable[[pa.Array, pa.Array], pa.Array], tests: Sequence[Test]) -> Test:
    return lambda columns: reduce(join, (test(columns) for test in tests))


def _pair(whole: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
    """One comparison of a chain."""
    match op:
        case ast.Is() | ast.IsNot():
            return _is_none(whole, left, op, right)
        case ast.In() | ast.NotIn():
            return _is_in(whole, left, op, right)
    kinds = [_kind(left), _kind(right)]
    if not any(isinstance(side, ast.Name) for side in (left, right)):
        _refuse(whole, "compares no column")
    if kinds[0] != kinds[1]:
        _refuse(whole, f"compares a {kinds[0]} with a {kinds[1]}")
    if kinds[0] != "number" and not isinstance(op, ast.Eq | ast.NotEq):
        _refuse(whole, f"has no order: a {kinds[0]} is equal to another one or not")
    compare, a, b = _COMPARED[type(op)], _operand(left), _operand(right)
    return lambda columns: compare(a(columns), b(columns))


def _is_none(whole: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
    if not isinstance(right, ast.Constant) or right.value is not None:
        _refuse(whole, "is wrong; `is` goes with None alone, use == for values")
    if not isinstance(left, ast.Name):
        _refuse(whole, "asks of no column whether it is None")
    _column(left)
    ask, name = pc.is_null if isinstance(op, ast.Is) else pc.is_valid, left.id
    return lambda columns: ask(columns[name])


def _is_in(whole: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
    if not isinstance(left, ast.Name) or not isinstance(right, ast.List | ast.Tuple | ast.Set):
        _refuse(whole, "is wrong; `in` goes with a column and a list, as in source in ['a', 'b']")
    kind, name = _column(left).kind, left.id
    if kind == "truth":
        _refuse(whole, f"is wrong; use {name}, not {name}, or {name} is None")
    values = []
    for item in right.elts:
        if isinstance(item, ast.Name) or _kind(item) != kind:
            _refuse(item, f"is in the list of `{name}`, whose values are of kind {kind}")
        values.append(_constant(item))
    known = pa.array(values, pa.float64() if kind == "number" else pa.string())
    wanted = isinstance(op, ast.In)

    def test(columns: Columns) -> pa.Array:
        column = columns[name]
        found = pc.equal(pc.is_in(column, value_set=known), wanted)
        return pc.if_else(pc.is_valid(column), found, None)

    return test


def _operand(node: ast.expr) -> Callable[[Columns], Any]:
    if isinstance(node, ast.Name):
        name = node.id
        return lambda columns: columns[name]
    value = pa.scalar(_constant(node))
    return lambda columns: value


def _kind(node: ast.expr) -> Kind:
    if isinstance(node, ast.Name):
        return _column(node).kind
    value = _constant(node)
    if isinstance(value, bool):
        return "truth"
    return "text" if isinstance(value, str) else "number"


def _constant(node: ast.expr) -> float | str | bool:
    """A value that is written out; numbers as float64."""
    match node:
        case ast.Constant(value=bool() | str() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            return _float(node, value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=value)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                change = operator.neg if isinstance(sign, ast.USub) else operator.pos
                return _float(node, change(value))
        case ast.Constant(value=None):
            _refuse(node, "is compared; use `is None` or `is not None`")
    _refuse(node, "is neither a column nor a number, a string, True or False")


def _float(node: ast.expr, value: Number) -> float:
    try:
        return float(value)
    except OverflowError:
        _refuse(node, "is too large")


def _column(node: ast.Name) -> Column:
    if node.id not in COLUMNS:
        near = difflib.get_close_matches(node.id, COLUMNS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise WhereError(
            f"where: no column {node.id}{hint}; there are {', '.join(sorted(COLUMNS))}"
        )
    return COLUMNS[node.id]


def _refuse(node: ast.expr, why: str) -> NoReturn:
    raise WhereError(f"where: {_short(ast.unparse(node))} {why}")


def _short(text: str) -> str:
    one_line = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return f"`{one_line if len(one_line) <= 60 else one_line[:57] + '...'}`"


class _Normal(ast.NodeTransformer):
    """Other spellings of the same: 3.0 for 3, (1, 2) or {1, 2} for [1, 2]."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if isinstance(node.value, float) and node.value.is_integer():
            return ast.Constant(value=int(node.value))
        return node

    def visit_Tuple(self, node: ast.Tuple) -> ast.List:
        return self._list(node.elts)

    def visit_Set(self, node: ast.Set) -> ast.List:
        return self._list(node.elts)

    def _list(self, items: list[ast.expr]) -> ast.List:
        return ast.List(elts=[self.visit(item) for item in items], ctx=ast.Load())
