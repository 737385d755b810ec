"""docs/faults.md: every row of the catalogue has a test that injects it, or says why it cannot be had."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = set(range(1, 51))


def marked():
    """(test file, test) → the rows that it holds the promise of."""
    found = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for decorator in function.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
                    found[path.stem, function.name] |= {ast.literal_eval(row) for row in decorator.args}
    return found


def listed():
    """Row → the tests that the page names, and its limit."""
    found = {}
    for line in (ROOT / "docs" / "faults.md").read_text().splitlines():
        if match := re.match(r"\| (\d+) \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            tests = {tuple(name.split("::")) for name in re.findall(r"`(test_\w+::test_\w+)`", line)}
            assert int(match[1]) not in found, f"row {match[1]} is there twice"
            found[int(match[1])] = tests, cells[-1]
    return found


def test_every_row_of_the_catalogue_is_on_the_page_with_a_test_or_the_reason_why_none_can_be():
    rows = listed()
    assert set(rows) == ROWS
    assert {row for row, (tests, limit) in rows.items() if not tests and not limit.startswith("not here:")} == set()


def test_the_page_names_exactly_the_tests_that_are_marked_with_a_row():
    said = {(row, test) for row, (tests, _) in listed().items() for test in tests}
    there = {(row, test) for test, rows in marked().items() for row in rows}
    assert sorted(said - there) == []
    assert sorted(there - said) == []
