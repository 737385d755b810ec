"""A few seconds of fuzzing with fixed seeds, and all that was found before, again. `make fuzz` goes on for as long as wanted."""

from pathlib import Path

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
NUMBER = st.integers(0, 2**32 - 1)
EDITS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=6)


@pytest.fixture(scope="module", autouse=True)
def no_child_stays():
    """Tests that measure the processes of this one come later."""
    yield
    targets.child().close()
    targets.child.cache_clear()


@pytest.mark.parametrize("name", targets.TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_whatever_a_file_holds_it_gives_a_value_or_an_error_of_ours(name):
    target = targets.TARGETS[name]
    seeds = target.seeds()

    @settings(
        max_examples=30, derandomize=True, database=None, deadline=10_000, suppress_health_check=list(HealthCheck)
    )
    @given(st.integers(0, len(seeds) - 1), EDITS)
    def edited(seed, edits):
        try:
            data = target.edit(seeds[seed], edits, seeds)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return  # an edit that leaves nothing to edit
        targets.attempt(name, data)

    for seed in seeds:
        targets.attempt(name, seed)
    edited()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore")
def test_what_was_found_once_is_mended(path):
    targets.attempt(path.name.rsplit("-", 1)[0], path.read_bytes())


@pytest.mark.parametrize(
    ("name", "reads"), [("array.shard", "volume"), ("pack.shard", "pack"), ("sequences", "letters")]
)
def test_the_fuzzing_would_see_wrong_data(name, reads, monkeypatch):
    right = targets.original(reads)
    spoil = {"volume": lambda: right + 1, "letters": lambda: {0: b"XXX"}, "pack": lambda: (right[0] + 1, *right[1:])}
    monkeypatch.setitem(targets._READ, reads, spoil[reads])
    with pytest.raises(AssertionError):
        targets.attempt(name, targets.TARGETS[name].seeds()[0])
