"""A few seconds of fuzzing with fixed seeds, and all that was found before, again. `make fuzz` goes on for as long as wanted."""

from pathlib import Path

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
NUMBER = st.integers(0, 2**32 - 1)
EDITS = st.lists(st.tuples(NUMBER, NUMBER, NUMBER), min_size=1, max_size=6)


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


@pytest.mark.parametrize("name", ["array.shard", "pack.shard", "pack.digests", "sequences"])
def test_the_fuzzing_would_see_wrong_data(name, monkeypatch):
    """Without the digests that data are held to, an edit comes through, and is a finding."""
    import numpy as np

    from diastole.lake import packs, sequences

    target, edits = targets.TARGETS[name], [(1, 60, 3)]
    [seed] = target.seeds()
    read = {"array.shard": "volume", "sequences": "letters"}.get(name, "pack")
    right = targets._READ[read]()
    wrong = {
        "volume": lambda r: r + 1,
        "letters": lambda r: {0: b"XXX"},
        "pack": lambda r: (r[0] + 1, np.zeros(40, bool), *r[2:]),
    }
    monkeypatch.setitem(targets._READ, read, lambda: wrong[read](right))
    targets.original.cache_clear()
    monkeypatch.setattr(targets, "original", lambda what: right)
    assert packs
    assert sequences
    with pytest.raises(AssertionError):
        targets.attempt(name, target.edit(seed, edits, [seed]))
