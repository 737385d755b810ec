"""nibabel without what it would import beside."""

import sys
from functools import cache
from importlib import import_module
from typing import Any


@cache
def nibabel() -> Any:
    """nibabel; Any, since its functions are not typed.

    It would import pydicom, with all of its decoders, for headers of DICOM inside of NIfTI files, which are not read here: a
    decoder would start in four times the time, with twice the memory. Where pydicom is there already, it stays.
    """
    if "pydicom" in sys.modules or "nibabel" in sys.modules:
        return import_module("nibabel")
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # what is None is not found
    try:
        return import_module("nibabel")
    finally:
        del sys.modules["pydicom"]
