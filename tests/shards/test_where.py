"""Filters equal plain Python, row by row, or say what is wrong; the split is by subject."""

import operator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset import Dataset
from shards.errors import WhereError
from shards.planning import Selection, subject_codes
from shards.schema import INDEX_SCHEMA
from shards.split import held_out, places
from shards.testing import write_toy_dataset
from shards.versions import LABELLED
from shards.where import COLUMNS, MAX_CHARS, Where

SCHEMA = INDEX_SCHEMA.append(LABELLED)
ROWS = [
    {
        "key": f"k{n}",
        "shard": "shard-000000.tar",
        "subject_id": f"p{n // 2}" if n % 5 else "",
        "study_id": f"s{n}",
        "source": ("a", "b", "c d")[n % 3],
        "shape_zyx": [30 + 7 * n, 64, 65 + n],
        "spacing_zyx_mm": [1.5, 0.5 * n, 1.5],
        "slice_mm": (0.5, 1.0, 3.0, 5.0)[n % 4],
        "kernel": ("", "B30f", "it's")[n % 3],
        "contrast": (True, False, None)[n % 3 if n < 9 else 2],
        "trainable": n % 4 > 0,
        "offset": 512 * n,
        "nbytes": 100,
        "labelled": n % 6 == 0,
    }
    for n in range(24)
]
TABLE = pa.Table.from_pylist(ROWS, schema=SCHEMA)


def passed(text):
    where = Where(text)
    stored = {name: TABLE[name].combine_chunks() for name in where.stored}
    return where.rows(stored, len(ROWS)).tolist()


def value(row, name):
    column = COLUMNS[name]
    found = row[column.stored]
    return found if column.axis is None else found[column.axis]


# Three-valued logic in plain Python: None is unknown.
def kleene_not(a):
    return None if a is None else not a


def kleene_and(*values):
    return False if False in values else None if None in values else True


def kleene_or(*values):
    return True if True in values else None if None in values else False


COMPARISONS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
BY_KIND = {
    kind: sorted(name for name, column in COLUMNS.items() if column.kind == kind)
    for kind in ("number", "text", "truth")
}
LITERALS = {
    "number": st.one_of(
        st.integers(-200, 200), st.sampled_from([0.5, 1.0, 1.5, 3.0, -2.25, 64, 65])
    ),
    "text": st.sampled_from(["a", "b", "c d", "", "B30f", "it's", "k3", "p1", "s2", "é"]),
    "truth": st.booleans(),
}


@st.composite
def operands(draw, kind):
    """Text, and the value for a row."""
    if draw(st.booleans()):
        name = draw(st.sampled_from(BY_KIND[kind]))
        return name, lambda row: value(row, name)
    literal = draw(LITERALS[kind])
    return repr(literal), lambda row: literal


@st.composite
def comparisons(draw):
    """A chain of comparisons that has a column in each link."""
    kind = draw(st.sampled_from(sorted(BY_KIND)))
    signs = list(COMPARISONS) if kind == "number" else ["==", "!="]
    name = draw(st.sampled_from(BY_KIND[kind]))
    text, left = name, lambda row: value(row, name)
    tests, is_column = [], True
    for _ in range(draw(st.integers(1, 3))):
        sign = draw(st.sampled_from(signs))
        right_text, right = draw(operands(kind))
        if not is_column and right_text not in COLUMNS:
            right_text, right = name, lambda row: value(row, name)
        text += f" {sign} {right_text}"
        tests.append((left, COMPARISONS[sign], right))
        left, is_column = right, right_text in COLUMNS

    def run(row):
        results = []
        for a, compare, b in tests:
            sides = a(row), b(row)
            results.append(None if None in sides else compare(*sides))
        return kleene_and(*results)

    return text, run


@st.composite
def memberships(draw):
    kind = draw(st.sampled_from(["number", "text"]))
    name = draw(st.sampled_from(BY_KIND[kind]))
    items = draw(st.lists(LITERALS[kind], max_size=4))
    wanted = draw(st.booleans())
    text = f"{name} {'in' if wanted else 'not in'} {items!r}"
    return text, lambda row: (value(row, name) in items) == wanted


nones = st.sampled_from(sorted(COLUMNS)).flatmap(
    lambda name: st.sampled_from(
        [
            (f"{name} is None", lambda row: value(row, name) is None),
            (f"{name} is not None", lambda row: value(row, name) is not None),
        ]
    )
)
truths = st.sampled_from(BY_KIND["truth"]).map(lambda name: (name, lambda row: value(row, name)))


def joined(parts):
    def join(word, run):
        return (
            f" {word} ".join(f"({text})" for text, _ in parts),
            lambda row: run(*(test(row) for _, test in parts)),
        )

    return st.sampled_from([join("and", kleene_and), join("or", kleene_or)])


expressions = st.recursive(
    st.one_of(comparisons(), memberships(), nones, truths),
    lambda inner: st.one_of(
        inner.map(lambda e: (f"not ({e[0]})", lambda row: kleene_not(e[1](row)))),
        st.lists(inner, min_size=2, max_size=3).flatmap(joined),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(expressions)
def test_a_filter_is_plain_python_row_by_row(expression):
    text, run = expression
    found = passed(text)
    assert found == [run(row) is True for row in ROWS]
    normal = Where(text).text
    assert Where(normal).text == normal
    assert passed(normal) == found


def test_what_is_unknown_is_neither_true_nor_false():
    unknown = [row["contrast"] is None for row in ROWS]
    assert any(unknown)
    assert passed("contrast is None") == unknown
    for text in ("contrast", "not contrast", "contrast == False", "contrast != True"):
        assert not any(np.array(passed(text)) & unknown)
    assert passed("contrast or contrast is None") == [row["contrast"] is not False for row in ROWS]
    assert passed("contrast and trainable or not contrast") == [
        (row["contrast"] and row["trainable"]) or row["contrast"] is False for row in ROWS
    ]


def test_known_answers():
    assert passed("") == passed("  \n") == [True] * len(ROWS)
    assert passed("1 <= slice_mm <= 3 and source in ['a', 'c d']") == [
        row["slice_mm"] in (1, 3) and row["source"] != "b" for row in ROWS
    ]
    assert passed("shape_z > 100") == [row["shape_zyx"][0] > 100 for row in ROWS]
    assert passed("spacing_y == 1.5") == [n == 3 for n in range(len(ROWS))]
    assert passed("subject_id == ''") == [n % 5 == 0 for n in range(len(ROWS))]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("( slice_mm<=3.0 )and(contrast)", "slice_mm <= 3 and contrast"),
        ('source in ("a", "b")', "source in ['a', 'b']"),
        ("source in {'a'}", "source in ['a']"),
        ("not (not labelled)", "not not labelled"),
        ("slice_mm > -1.5e0", "slice_mm > -1.5"),
        ("slice_mm > -2.0", "slice_mm > -2"),
        ("   ", ""),
    ],
)
def test_one_form_of_equal_filters(text, normal):
    assert Where(text).text == normal
    assert Selection(where=text) == Selection(where=normal)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "slicemm <= 3",
            "no column slicemm (did you mean slice_mm?); there are contrast, kernel, key",
        ),
        ("kvp > 100", "no column kvp; there are"),
        ("slice_mm", "`slice_mm` is neither true nor false; compare it"),
        ("slice_mm <= '3'", "`slice_mm <= '3'` compares a number with a text"),
        ("contrast == 1", "compares a truth with a number"),
        ("source < 'b'", "has no order"),
        ("contrast == None", "`None` is compared; use `is None`"),
        ("contrast is True", "`is` goes with None alone"),
        ("1 is None", "asks of no column"),
        ("1 < 2", "compares no column"),
        ("1 < 2 < slice_mm", "compares no column"),
        ("3", "`3` is not a test"),
        ("slice_mm + 1 < 3", "`slice_mm + 1` is neither a column nor a number"),
        ("slice_mm < 1j", "`1j` is neither a column nor a number"),
        ("source in 'ab'", "`in` goes with a column and a list"),
        ("'a' in source", "`in` goes with a column and a list"),
        ("source in ['a', 1]", "`1` is in the list of `source`, whose values are of kind text"),
        ("source in ['a', source]", "`source` is in the list"),
        ("contrast in [True]", "use contrast, not contrast, or contrast is None"),
        ("key.startswith('a')", "is not a test"),
        ("__import__('os')", "is not a test"),
        ("(lambda: True)()", "is not a test"),
        ("[x for x in ()]", "is not a test"),
        ("slice_mm if labelled else key", "is not a test"),
        ("~labelled", "is not a test"),
        ("slice_mm < 1e999 and slice_mm < " + "9" * 400, "is too large"),
        ("slice_mm = 3", "at character"),
        ("slice_mm <= 3 && contrast", "at character"),
        ("(slice_mm < 3", "at character"),
        ("a b\nc d", "at character"),
        ("slice_mm < 3\x00", "slice_mm < 3?`"),
        ("not " * 900 + "labelled", "nested too deeply"),
        ("(" * 300 + "labelled" + ")" * 300, "where: "),
        ("labelled or " * 1000 + "labelled", f"characters; give {MAX_CHARS} at most"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(text, says):
    with pytest.raises(WhereError) as excinfo:
        Where(text)
    message = str(excinfo.value)
    assert message.startswith("where: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 300


@settings(max_examples=100, deadline=None)
@given(st.text("slice_mmcontra()<>=!'\"[],. 0139&|~+-*/:{}@\\\n\x00nt", max_size=40))
def test_any_text_is_a_filter_or_a_where_error(text):
    try:
        where = Where(text)
    except WhereError as exc:
        message = str(exc)
    else:
        message = ""
        assert Where(where.text).text == where.text
    assert message.isprintable()


def subjects_of(ids):
    return pa.array(ids).dictionary_encode()


def test_the_share_of_subjects_that_is_held_out():
    n = 20_000
    ids = [f"{number // 2:024x}" for number in range(n)]
    keys = pa.array([f"k{number}" for number in range(n)])
    for share in (0.0, 0.02, 0.1, 0.5, 1.0):
        out = held_out(keys, subjects_of(ids), holdout=share, seed=0)
        # Five standard deviations of a binomial of 10,000 subjects.
        assert abs(out[::2].mean() - share) <= 5 * (share * (1 - share) / (n / 2)) ** 0.5
        assert np.array_equal(out[::2], out[1::2])


def test_more_is_held_out_with_a_larger_share_and_others_with_another_seed():
    keys = pa.array([f"k{n}" for n in range(2000)])
    ids = subjects_of([f"p{n}" for n in range(2000)])
    small, large = (held_out(keys, ids, holdout=share, seed=0) for share in (0.1, 0.3))
    assert not np.any(small & ~large)
    other = held_out(keys, ids, holdout=0.3, seed=1)
    assert 0.3 * 0.3 * 0.6 < np.mean(large & other) < 0.3 * 0.3 * 1.4


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab1", max_size=2), st.text("xyz0", min_size=1)), unique=True),
    st.data(),
)
def test_a_subject_stays_on_its_side_in_any_company(samples, data):
    """Samples without a subject id go by their key."""
    chosen = data.draw(st.lists(st.sampled_from(samples), unique=True)) if samples else []

    def sides(some):
        ids = pa.array([subject for subject, _ in some], pa.string())
        keys = pa.array([key for _, key in some], pa.string())
        out = held_out(keys, ids.dictionary_encode(), holdout=0.5, seed=7)
        return {
            (subject or f"key {key}"): bool(o) for (subject, key), o in zip(some, out, strict=True)
        }

    whole, part = sides(samples), sides(chosen)
    assert part == {name: whole[name] for name in part}
    for subject, key in samples:
        kind, text = ("subject", subject) if subject else ("key", key)
        side = bool(places(7, kind, pa.array([text]))[0] < 0.5)
        assert whole[subject or f"key {key}"] == side


def test_known_places():
    """Written down once: a run resumed by a later version must hold out the same subjects."""
    assert places(0, "subject", pa.array(["someone"])).tolist() == [0.5399013154177339]
    assert places(1, "key", pa.array(["someone"])).tolist() == [0.7799071377964749]


def test_codes_of_subjects():
    found = subject_codes(subjects_of(["p", "", "q", "p", "", "q"])).tolist()
    assert found[0] == found[3] != found[2] == found[5]
    assert len(set(found)) == 4
    assert subject_codes(subjects_of(["p"])).tolist() == [0]


@pytest.mark.parametrize("holdout", [-0.1, 1.5])
def test_a_share_is_from_0_to_1(holdout):
    with pytest.raises(ValueError, match="holdout must be from 0 to 1"):
        Selection(holdout=holdout)


def test_the_parts_of_a_dataset(tmp_path):
    dataset = Dataset.open(write_toy_dataset(tmp_path, 40, (34, 34, 34), per_shard=7))
    everyone = dataset.plan_samples()
    assert everyone.trainable.all()
    sides = [
        dataset.plan_samples(holdout=0.3, split=split, split_seed=1).trainable
        for split in ("train", "held_out")
    ]
    assert np.array_equal(sides[0], ~sides[1])
    assert 0 < sides[1].sum() < 40
    key = everyone.keys[np.flatnonzero(sides[1]).tolist()[0]]
    alone = dataset.plan_samples(f"key == '{key}'", holdout=0.3, split="held_out", split_seed=1)
    assert [everyone.keys[row] for row in np.flatnonzero(alone.trainable).tolist()] == [key]
    nobody = dataset.plan_samples(f"key == '{key}'", holdout=0.3, split="train", split_seed=1)
    assert not nobody.trainable.any()
    assert replace(nobody, trainable=everyone.trainable).shard_number.tolist() == [
        n // 7 for n in range(40)
    ]
    with pytest.raises(WhereError, match="no column slices"):
        dataset.plan_samples("slices > 3")
