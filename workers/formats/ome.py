"""OME-XML in a TIFF: sizes and times with their units, and names of dyes; nothing else of it is looked at."""

import math
import re
from dataclasses import dataclass
from typing import Any

from diastole.lake.errors import ItemError

XML_BYTES = 2**23
_LENGTHS = {"m": 1e3, "cm": 10.0, "mm": 1.0, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "nm": 1e-6, "pm": 1e-9}
_TIMES = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "μs": 1e-6, "min": 60.0, "h": 3600.0}
_DYES = (
    "DAPI", "Hoechst", "Hoechst 33342", "Hoechst 33258", "FITC", "TRITC", "GFP", "EGFP", "CFP", "ECFP", "YFP", "EYFP",
    "RFP", "mRFP", "mCherry", "tdTomato", "DsRed", "Cy2", "Cy3", "Cy3.5", "Cy5", "Cy5.5", "Cy7", "Texas Red",
    "Rhodamine", "Alexa 350", "Alexa 405", "Alexa 488", "Alexa 532", "Alexa 546", "Alexa 555", "Alexa 568", "Alexa 594",
    "Alexa 633", "Alexa 647", "Alexa 680", "Alexa 700", "Alexa 750", "SYTO 13", "SYTOX Green", "PI", "Propidium iodide",
    "DRAQ5", "MitoTracker", "Phalloidin", "Brightfield", "BF", "DIC", "Phase", "Transmitted",
)  # fmt: skip
"""Names that say what a channel shows and nothing of whom."""
_KNOWN = {re.sub(r"[^a-z0-9.]", "", dye.lower()): dye for dye in _DYES}


@dataclass(frozen=True)
class Ome:
    """What is kept of OME-XML."""

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    """x, y, z in mm."""
    time_step: float | None = None
    """Seconds."""
    dyes: tuple[str | None, ...] = ()
    """Of each channel, where it has one of the names that are known."""


def check(description: str) -> None:
    """Refuse XML that is too large, or that defines entities, before anything parses it. Raises ItemError."""
    if len(description) > XML_BYTES:
        raise ItemError("too_large", f"its description has more than {XML_BYTES} characters; save it without")
    if "<!DOCTYPE" in description or "<!ENTITY" in description:
        raise ItemError("unsupported", "its OME-XML has a document type, which may grow without end; save it without")


def read(description: str, image: int = 0) -> Ome:
    """What the XML says of an image, by its number. Raises ItemError where it cannot be parsed."""
    import xml.etree.ElementTree as ET

    check(description)
    try:
        root = ET.fromstring(description)  # noqa: S314 - without entities, and bounded
    except ET.ParseError as error:
        raise ItemError("header_lies", "its OME-XML cannot be parsed") from error
    found = [pixels for one in root if _is(one, "Image") for pixels in one if _is(pixels, "Pixels")]
    if image >= len(found):
        return Ome()
    said = found[image].attrib
    sizes = [_quantity(said, f"PhysicalSize{axis}", _LENGTHS, "µm") for axis in "XYZ"]
    dyes: list[str | None] = []
    for channel in found[image]:
        if _is(channel, "Channel"):
            names = (channel.attrib.get("Fluor", ""), channel.attrib.get("Name", ""))
            dyes.append(next(filter(None, map(dye, names)), None))
    return Ome((sizes[0], sizes[1], sizes[2]), _quantity(said, "TimeIncrement", _TIMES, "s"), tuple(dyes))


def dye(name: str) -> str | None:
    """The usual spelling of a dye's name; None for any other text."""
    plain = re.sub(r"[^a-z0-9.]", "", name.lower()).replace("alexafluor", "alexa")
    return _KNOWN.get(plain)


def _is(element: Any, tag: str) -> bool:
    return str(element.tag).rpartition("}")[2] == tag


def _quantity(said: Any, name: str, units: dict[str, float], usual: str) -> float | None:
    try:
        value = float(said[name]) * units[said.get(f"{name}Unit", usual)]
    except (KeyError, ValueError):
        return None
    return float(f"{value:.9g}") if math.isfinite(value) and value > 0 else None
