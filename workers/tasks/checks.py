"""What the tasks ask of an item before it is planned, and of what a network gives."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...jobs.contract import axes_of
from ...lake.errors import ItemError

Refusal = tuple[str, str]


def no_volume(item: Mapping[str, Any]) -> Refusal | None:
    """Why an items row is none of a volume with a geometry."""
    axes = len(item["shape"] or ())
    if axes != 3:
        return "not_a_volume", f"the task needs a volume of 3 axes, the item has {axes}"
    if axes_of(item) != "zyx":
        return "not_a_volume", "the task needs a volume, the item is an image"
    if not (item["geometry"] or {}).get("spacing"):
        return "not_a_volume", "the task needs a volume, the item has no voxels of a known size"
    return None


def no_image(item: Mapping[str, Any]) -> Refusal | None:
    """Why an items row is none of an image of channels, rows and columns."""
    if axes_of(item) != "cyx":
        return "not_an_image", "the task needs an image of channels, rows and columns, the item is none"
    return None


def no_recording(item: Mapping[str, Any]) -> Refusal | None:
    """Why an items row is none of a recording."""
    if not (item["signal"] or {}).get("rate") or len(item["shape"] or ()) != 2:
        return "not_a_recording", "the task needs a recording of channels over time, the item is none"
    return None


def no_sequence(item: Mapping[str, Any]) -> Refusal | None:
    """Why an items row is none of a sequence."""
    if (item["sequence"] or {}).get("length") is None:
        return "not_a_sequence", "the task needs a sequence, the item is none"
    return None


def wrong_outputs(found: Sequence[int], wanted: str) -> ItemError:
    """A network that does not give what its package says: an error, never a number under another class's name."""
    return ItemError("wrong_outputs", f"the network gave {' × '.join(map(str, found))} values, wanted: {wanted}")
