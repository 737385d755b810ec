"""Fixtures that several test files use."""

from pathlib import Path

import pytest

from diastole.lake.layout import Lake


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """An empty lake in a folder of this test, with its key beside it, not in the home folder."""
    monkeypatch.setenv("DIASTOLE_KEYS", str(tmp_path / "keys"))
    return Lake.create(str(tmp_path / "lake"))
