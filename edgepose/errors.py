"""The exceptions of edgepose.

    EdgePoseError
    ├── InputError              (also a ValueError)   a frame, box or option is not usable
    ├── ModelError                                    a model file or its ModelSpec is not usable
    ├── EngineError                                   an engine cannot be opened or run on this machine
    ├── SourceError                                   a camera, file or stream cannot be opened, or was lost
    └── MissingDependencyError  (also an ImportError) an optional package is not installed

Each message says what was expected, what came, and what to do about it.
"""

from __future__ import annotations

__all__ = ["EdgePoseError", "EngineError", "InputError", "MissingDependencyError", "ModelError", "SourceError"]


class EdgePoseError(Exception):
    """Base class of every error that edgepose raises on purpose."""


class InputError(EdgePoseError, ValueError):
    """A frame, a box or an option is not usable."""


class ModelError(EdgePoseError):
    """A model file or its :class:`~edgepose.ModelSpec` is not usable."""


class EngineError(EdgePoseError):
    """An engine cannot be opened or run on this machine."""


class SourceError(EdgePoseError):
    """A camera, a file or a network stream cannot be opened, or was lost."""


class MissingDependencyError(EdgePoseError, ImportError):
    """An optional package is not installed."""
