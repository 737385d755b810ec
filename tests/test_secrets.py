"""What must not be in the repository: values that look like secrets, and hosts that packages come from."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOOKS_SECRET = {
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a token of a forge": r"\b(gh[pousr]_[A-Za-z0-9]{36}|glpat-[\w-]{20})",
    "a token of a hub": r"\bhf_[A-Za-z0-9]{34}\b",
    "a token of a chat": r"\bxox[abpr]-[\w-]{10,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a shared access signature": r"[?&]sig=[A-Za-z0-9%]{40,}",
    "a password in a URL": r"\b(https?|s3)://[\w.-]+:(?!secret@)[^@\s/'\"{]{6,}@",
}
INDEXES = r"--(extra-)?index-url|trusted-host|PIP_INDEX|(pypi|npmjs|crates)\.(?!python)[a-z]+/simple|artifactory|nexus\.|devpi"


def tracked():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git repository")
    for name in listed.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and "corpus" not in path.parts and path != Path(__file__):
            yield name, path.read_bytes().decode("latin-1")


def test_no_file_has_what_looks_like_a_secret_or_names_an_index():
    patterns = {**LOOKS_SECRET, "an index of packages": INDEXES}
    found = [(name, what) for name, text in tracked() for what, pattern in patterns.items() if re.search(pattern, text)]
    assert found == []


def test_the_patterns_find_what_they_are_for():
    planted = [
        "AKIA" + "A1" * 8,
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "ghp_" + "a" * 36,
        "https://u:passwor" + "d@host/",
    ]
    for text in planted:
        assert any(re.search(pattern, text) for pattern in LOOKS_SECRET.values()), text
    assert re.search(INDEXES, "pip install --index-url x")
