"""Where a feature is: the locations of GenBank's feature table."""

import re

Place = list[list[int]]
"""[first base from 0, end, strand 1 or -1] of each part, in the order in which the feature runs."""
_PARTS = 200
_TOKEN = re.compile(r"(complement|join|order|bond)\(|(\))|(,)|<?(\d{1,12})(?:(\.\.|\^)>?<?(\d{1,12}))?|>(\d{1,12})")


def places(text: str, length: int) -> Place | None:
    """The parts of a location; None where it is of another record, vague, outside of it, or not a location."""
    text = text.replace(" ", "")
    open_groups: list[tuple[bool, Place]] = [(False, [])]
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or len(open_groups) > 20:
            return None
        at = found.end()
        group, close, _, first, between, last, beyond = found.groups()
        if group:
            open_groups.append((group == "complement", []))
        elif close:
            if len(open_groups) < 2:
                return None
            turned, parts = open_groups.pop()
            open_groups[-1][1].extend(
                [[start, end, -strand] for start, end, strand in parts[::-1]] if turned else parts
            )
        elif number := first or beyond:
            start, end = int(number) - 1, int(last or number)
            if between == "^":
                start = end = int(number)
            if not 0 <= start <= end <= length:
                return None
            open_groups[-1][1].append([start, end, 1])
    [(_, parts)] = open_groups if len(open_groups) == 1 else [(False, [])]
    return parts if 0 < len(parts) <= _PARTS else None
