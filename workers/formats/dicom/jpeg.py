"""JPEG of more than 8 bits and lossless JPEG, as a plugin of pydicom's: its own ones cannot, or are under the GPL."""

from typing import Any

import numpy as np

EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))
SYNTAXES = (EXTENDED, LOSSLESS, LOSSLESS_SV1)
LABEL = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("numpy", "imagecodecs"))


def is_available(uid: str) -> bool:
    """Whether pydicom may use this plugin for a transfer syntax."""
    return uid in SYNTAXES


def add() -> None:
    """Make pydicom know this plugin."""
    from pydicom.pixels import get_decoder

    for syntax in SYNTAXES:
        if LABEL not in (decoder := get_decoder(syntax)).available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: Any) -> bytes:
    """One frame as it is stored, in whole words of the bits that the header has. Raises ValueError."""
    import imagecodecs

    if runner.samples_per_pixel > 1 and (
        runner.transfer_syntax == EXTENDED or runner.photometric_interpretation != "RGB"
    ):
        raise ValueError("colours would be converted, or not, unseen")
    found = imagecodecs.jpeg8_decode(source)
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(found, f"<u{runner.bits_allocated // 8}").tobytes()
