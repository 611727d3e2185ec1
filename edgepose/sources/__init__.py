"""Sources of frames: what they are, what reads them, and the thread that does.

reader.py      the protocol of every reader
opening.py     finds out what a source is, and opens a reader for it
feed.py        the thread of one source: slot or queue, time limits, reconnection, counters
bell.py        how that thread wakes the consumer
opencv.py      cameras, files, URLs, GStreamer            pyav.py    files and URLs
gstreamer.py   gst-launch-1.0 as a process of its own     nvdec.py   files and URLs, decoded on the GPU
memory.py      iterators, callables, photos
"""

from __future__ import annotations

from edgepose.sources.bell import Bell
from edgepose.sources.feed import Feed, Waiting
from edgepose.sources.opening import Kind, Source, find_source, split_sources
from edgepose.sources.reader import Captured, Reader

__all__ = ["Bell", "Captured", "Feed", "Kind", "Reader", "Source", "Waiting", "find_source", "split_sources"]
