"""Large JSON files, record by record: a COCO file of gigabytes is read in little memory."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgepose.console import track
from edgepose.errors import InputError

__all__ = ["numbers_of", "read_records"]

CHUNK = 1 << 22  # characters read at once
SHOW_PROGRESS = 1 << 26  # bytes; a smaller file is read before a progress bar could be looked at

_ARRAY = re.compile(r'"(?:keypoints|segmentation)"\s*:\s*\[')
_DECODER = json.JSONDecoder(strict=False)  # such text may hold line breaks


def read_records(path: Path, lists: Mapping[str, Callable[[Any], None]]) -> dict[str, Any]:
    """Read a file that holds one JSON object; the lists named are handed over entry by entry and not kept.

    Args:
        path: the file.
        lists: key of a list -> what to call with each entry, in the file's order. In an entry, arrays of numbers under
            the keys ``keypoints`` and ``segmentation`` are text; see :func:`numbers_of`.

    Returns:
        The object's other keys with their values; for the keys of ``lists`` that it has, the number of entries.

    Raises:
        InputError: the file cannot be read, or is not a JSON object; what ``lists`` raises passes through.
    """
    place = ["before the first key"]
    try:
        return _read_object(_Text(path), lists, place)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected a JSON file, but it cannot be read {place[0]}: {error}") from None


def numbers_of(value: Any) -> list[Any]:
    """The numbers of an array that :func:`read_records` handed over, whether as text or as a list; flat.

    Raises:
        ValueError, TypeError: it is no array of numbers.
    """
    if isinstance(value, str):
        try:
            return [float(number) for number in value[1:-1].split(",")]
        except ValueError:  # empty, or of several arrays
            value = json.loads(value)
    flat = []
    for number in value:
        if isinstance(number, list):
            flat += numbers_of(number)
        elif isinstance(number, (int, float)) and not isinstance(number, bool):
            flat.append(float(number))
        else:
            raise TypeError(f"{number!r} is not a number")
    return flat


class _Text:
    """The file's text from ``at`` on, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text, self.at, self.done = "", 0, False
        size = path.stat().st_size
        chunks: Iterator[str] = _chunks(path)
        if size >= SHOW_PROGRESS:
            chunks = iter(track(chunks, math.ceil(size / CHUNK), f"reading {path.name}"))
        self._chunks = chunks

    def more(self) -> None:
        """Forget what was used and at least double what is left, so that a long record is not parsed too often."""
        parts = [self.text[self.at :]]
        wanted = len(parts[0])
        while wanted >= 0 and not self.done:
            chunk = next(self._chunks, "")
            self.done = not chunk
            parts.append(chunk)
            wanted -= len(chunk) or 1
        self.text, self.at = _quote_arrays("".join(parts)), 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n\ufeff":
                self.at += 1
            if self.at < len(self.text) or self.done:
                return self.text[self.at : self.at + 1]
            self.more()

    def take(self, allowed: str) -> str:
        """The next character, which has to be one of those allowed."""
        character = self.peek()
        if not character or character not in allowed:
            expected = " or ".join(repr(c) for c in allowed)
            raise ValueError(f"expected {expected}, got {repr(character) if character else 'its end'}")
        self.at += 1
        return character

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.done:
                    raise ValueError(f"{error.msg} near {self.text[error.pos : error.pos + 30]!r}") from None
            else:
                if end < len(self.text) or self.done:  # else a number may go on
                    self.at = end
                    return value
            self.more()


def _chunks(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _quote_arrays(text: str) -> str:
    """Put arrays of numbers under `_ARRAY`'s keys in quotes, so that the JSON parser hands them over as text.

    DeepFashion2 gives each object 882 keypoint numbers, most of them 0.0, and a polygon of hundreds; making Python
    floats of them would take most of the time. An array whose end, and the key or brace after it, are not in sight is
    left for later: it may be cut off. Inside a JSON string each quote has a backslash before it, so only keys match.
    """
    parts, last = [], 0
    for match in _ARRAY.finditer(text):
        if match.start() and text[match.start() - 1] == "\\":
            continue
        begin = match.end() - 1
        quote = text.find('"', begin)
        brace = text.find("}", begin, quote if quote >= 0 else len(text))
        stop = brace if brace >= 0 else quote
        end = text.rfind("]", begin, max(stop, begin)) + 1
        if end and text[end:stop].strip() == ("" if brace >= 0 else ","):
            parts += [text[last:begin], '"', text[begin:end], '"']
            last = end
    parts.append(text[last:])
    return "".join(parts)


def _read_object(text: _Text, lists: Mapping[str, Callable[[Any], None]], place: list[str]) -> dict[str, Any]:
    others: dict[str, Any] = {}
    text.take("{")
    more = text.peek() != "}"
    while more:
        key = text.value()
        if not isinstance(key, str):
            raise ValueError(f"expected a key, got {key!r}")
        place[0] = f"at the key {key!r}"
        text.take(":")
        if key not in lists:
            others[key] = text.value()
        elif text.peek() != "[":
            raise InputError(f"{text.path}: expected a list under the key {key!r}")
        else:
            others[key] = _read_list(text, key, lists[key], place)
        more = text.take(",}") == ","
    if text.peek() and not others:  # {} is no COCO file; let the caller say which keys are missing
        text.take("}")
    if text.peek():
        raise ValueError(f"there is text after the object's end: {text.text[text.at : text.at + 30]!r}")
    return others


def _read_list(text: _Text, key: str, handle: Callable[[Any], None], place: list[str]) -> int:
    count = 0
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return 0
    while True:
        place[0] = f"in entry {count + 1} of {key}"
        handle(text.value())
        count += 1
        if text.take(",]") == "]":
            return count
