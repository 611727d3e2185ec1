"""What an image file says about itself before it is decoded: size, EXIF orientation, whether its end is there."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgepose.errors import InputError
from edgepose.media import read_photo

__all__ = ["ImageHeader", "read_header"]


class ImageHeader(NamedTuple):
    """A picture's size and orientation.

    Attributes:
        size: (w, h) px as stored, before any turn.
        orientation: EXIF's: 1 upright, 2 to 8 mirrored or turned.
        complete: the format's end marker is there; False: the file was cut off.
    """

    size: tuple[int, int]
    orientation: int
    complete: bool

    @property
    def shown(self) -> tuple[int, int]:
        """(w, h) px of the picture that ``read_photo`` gives: turned as the orientation says."""
        return self.size if self.orientation < 5 else (self.size[1], self.size[0])


def read_header(path: Path, *, whole: bool = True) -> ImageHeader:
    """Read the header of a JPEG or PNG file; other formats are decoded.

    Args:
        path: the file.
        whole: also look for the end marker; without it ``complete`` is True, and only the file's start is read.

    Raises:
        InputError: there is no such file, or it is not a picture.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start[:2] == b"\xff\xd8":
                return _jpeg(file, path, whole)
            if start == b"\x89PNG\r\n\x1a\n":
                return _png(file, path, whole)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (struct.error, IndexError):
        raise InputError(f"{path} is not a picture: its header is cut off") from None
    height, width = read_photo(path).shape[:2]  # upright already
    return ImageHeader((width, height), 1, True)


def _jpeg(file: BinaryIO, path: Path, whole: bool) -> ImageHeader:
    size, orientation = None, 1
    file.seek(2)
    while True:
        byte = file.read(1)
        if byte != b"\xff":
            raise InputError(f"{path} is not a JPEG picture that can be read: a segment marker is missing")
        while byte == b"\xff":  # fill bytes
            byte = file.read(1)
        marker = byte[0]
        if marker in (0x01, *range(0xD0, 0xD8)):  # these stand alone
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker == 0xDA:  # start of scan: the picture itself
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header
            height, width = struct.unpack(">xHH", file.read(5))
            size = (width, height)
            file.seek(length - 7, 1)
        elif marker == 0xE1 and length < 0xFFFF:
            data = file.read(length - 2)
            if data[:6] == b"Exif\0\0":
                orientation = _orientation(data[6:])
        else:
            file.seek(length - 2, 1)
        if size and not whole:
            return ImageHeader(size, orientation, True)  # EXIF comes before the frame header
    if not size or not all(size):
        raise InputError(f"{path} is not a JPEG picture that can be read: it does not say its size")
    scan = file.tell()
    end = file.seek(0, 2)
    file.seek(max(scan, end - 4096))
    complete = b"\xff\xd9" in file.read()
    if not complete:  # some cameras append much behind the end marker
        file.seek(scan)
        complete = b"\xff\xd9" in file.read()
    return ImageHeader(size, orientation, complete)


def _orientation(tiff: bytes) -> int:
    """EXIF tag 0x0112 of the first directory; 1 where there is none, or it makes no sense."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    (offset,) = struct.unpack_from(order + "I", tiff, 4)
    if offset + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, offset)
    for entry in range(offset + 2, min(offset + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == 0x0112 and kind == 3:
            (value,) = struct.unpack_from(order + "H", tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _png(file: BinaryIO, path: Path, whole: bool) -> ImageHeader:
    width, height = struct.unpack(">8xII", file.read(16))
    if not (width and height):
        raise InputError(f"{path} is not a PNG picture that can be read: it has no size")
    complete = True
    if whole:
        end = file.seek(0, 2)
        file.seek(max(0, end - 4096))
        complete = b"IEND" in file.read()
    return ImageHeader((width, height), 1, complete)
