"""YAML files that anybody may have written: the plain part of it, held to limits before anything is made of them.

No aliases, since a few of them stand for gigabytes; no tags that make objects; no key twice; no number that is none.
"""

import math
from typing import Any

import yaml

YAML_BYTES = 2**20
NODES = 50_000
"""Values in one YAML file at most; a job that names ten thousand items has fewer."""
DEPTH = 32
NUMBER_LETTERS = 64
"""A longer number would take longer to read than it can be meant."""
LARGEST = 10**18
"""Numbers beyond are no count, size or time of anything."""


def from_yaml(data: bytes) -> Any:
    """The one document of a YAML file, as plain values. Raises ValueError, which says in one line what is wrong."""
    if len(data) > YAML_BYTES:
        raise ValueError(f"it has more than the {YAML_BYTES} bytes that are read of such a file; split it")
    try:
        loader = _Loader(data)
        value = loader.get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none, and the like, is a ValueError
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:200]}") from None
    _check(value)
    return value


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases and duplicate keys, with a limit on values and depth."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._nodes = self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs of PyYAML leave it out
        self._nodes += 1
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases (*name) are not read: write it out", event)
        if self._nodes > NODES:
            raise _refused(f"it has more than {NODES} values", event)
        if self._depth == DEPTH:
            raise _refused(f"it is nested deeper than {DEPTH}", event)
        self._depth += 1
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > NUMBER_LETTERS:
            raise _refused("it has a number that is too long", event)
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands there twice", node.start_mark)
        return made


def _refused(why: str, event: Any) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, why, event.start_mark)


def _check(value: Any) -> None:
    """Hold a value to what a JSON file could say, too. Raises ValueError."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {str(key)[:40]} is not text: write it in quotes")  # noqa: TRY004
            _check(key)
            _check(one)
    elif isinstance(value, list):
        for one in value:
            _check(one)
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("it has half of a character (a surrogate) in it")
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int | float):
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise ValueError(f"it has a number that is infinite, none, or beyond {LARGEST:g}")
    else:
        raise ValueError(f"it has a {type(value).__name__}: write it in quotes if it is meant as text")
