"""Lossless JPEG and JPEG of 12 bits by imagecodecs, as a plugin of pydicom's: its own ones for these are under the GPL.

RLE is decoded by pydicom in Python. Of faster decoders one ends in a panic on damaged data, and one reads past its end.
"""

from typing import Any

import numpy as np

from . import dataset

RLE = "1.2.840.10008.1.2.5"
EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))
SYNTAXES = (EXTENDED, LOSSLESS, LOSSLESS_SV1)
LABEL = "imagecodecs"
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("numpy", "imagecodecs"))


def is_available(uid: str) -> bool:
    """Whether pydicom may use this plugin for a transfer syntax."""
    return uid in SYNTAXES


def add() -> None:
    """Make pydicom know this plugin."""
    get_decoder = dataset.library().pixels.get_decoder

    for syntax in SYNTAXES:
        if LABEL not in (decoder := get_decoder(syntax)).available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode_frame"))


def decode_frame(source: bytes, runner: Any) -> bytes:
    """One frame as it is stored, in whole words of the bits that the header has. Raises ValueError."""
    import imagecodecs

    dtype = np.dtype(f"<u{runner.bits_allocated // 8}")
    colours = runner.samples_per_pixel > 1
    if colours and (runner.transfer_syntax == EXTENDED or runner.photometric_interpretation != "RGB"):
        raise ValueError("colours would be converted, or not, unseen")
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(imagecodecs.jpeg8_decode(source), dtype).tobytes()
