"""The models that come with the package: each ``*.onnx`` in this folder, and each detector in ``detectors``, under the
name of its file.

Everything about a model stands in the spec inside the file, so there is no list to keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from edgepose.errors import ModelError

__all__ = ["ENGINE_SUFFIXES", "bundled_detectors", "bundled_models", "find_detector", "find_model"]

ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})  # of TensorRT engines
_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt", ".safetensors"}
_LFS_POINTER = b"version https://git-lfs"


def bundled_models() -> dict[str, Path]:
    """The models that come with edgepose, by name; ``Predictor(name)`` takes each of them."""
    return _bundled_in(Path(__file__).parent)


def bundled_detectors() -> dict[str, Path]:
    """The detectors that come with edgepose, by name; ``Detector(name)`` takes each of them."""
    return _bundled_in(Path(__file__).parent / "detectors")


def find_model(model: str | Path) -> Path:
    """The file of a pose model.

    Args:
        model: a bundled name, or the path of an ONNX file or of a TensorRT engine. A string without a suffix and
            without a folder is a name, unless a file of that name exists.

    Raises:
        ModelError: there is no such name or file, or the file cannot be a model.
    """
    others = {name: f"it is a detector: Predictor(model, detector={name!r})" for name in bundled_detectors()}
    return _find(model, bundled_models(), "model", others)


def find_detector(detector: str | Path) -> Path:
    """The file of a detector; the same as :func:`find_model` otherwise.

    Raises:
        ModelError: there is no such name or file, or the file cannot be a model.
    """
    others = {name: f"it finds landmarks: Predictor({name!r}, detector=...)" for name in bundled_models()}
    return _find(detector, bundled_detectors(), "detector", others)


def _bundled_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.onnx"), key=lambda path: path.stem)}


def _find(model: str | Path, bundled: Mapping[str, Path], kind: str, others: Mapping[str, str]) -> Path:
    """A file of this kind; ``others``: what to say of the names that are of another kind."""
    path = Path(model)
    if isinstance(model, str) and not path.suffix and path.name == model and not path.is_file():
        return _by_name(model, bundled, kind, others)
    if path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        export = f"edgepose export RECIPE --checkpoint {path} -o model.onnx"
        if kind == "detector":
            export = "with the tool that trained it"
        raise ModelError(f"{path} is a checkpoint, and the runtime takes ONNX models. Export it first: {export}")
    if path.is_dir():
        raise ModelError(f"{path} is a folder: pass the path of one .onnx file, or a bundled name: {_names(bundled)}")
    if not path.is_file():
        if path.suffix.lower() in ENGINE_SUFFIXES:
            raise ModelError(f"there is no engine file {path}. Build it: edgepose build model.onnx -o {path}")
        raise ModelError(
            f"there is no {kind} file {path}. Pass the path of an .onnx file, or a bundled name: {_names(bundled)}"
        )
    _check_content(path)
    return path


def _by_name(name: str, bundled: Mapping[str, Path], kind: str, others: Mapping[str, str]) -> Path:
    if name in bundled:
        return bundled[name]
    close = get_close_matches(name, bundled, n=3, cutoff=0.5)
    guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    guess = f" {name!r} is not one: {others[name]}." if name in others else guess
    raise ModelError(
        f"there is no bundled {kind} {name!r}.{guess} Bundled: {_names(bundled)}; or pass the path of an .onnx file"
    )


def _names(bundled: Mapping[str, Path]) -> str:
    return ", ".join(bundled) or "none in this installation"


def _check_content(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"model file {path} cannot be read: {error.strerror}") from None
    if not head:
        raise ModelError(f"model file {path} is empty (0 bytes): download or export it again")
    if head.startswith(_LFS_POINTER):
        raise ModelError(f"model file {path} is a Git LFS pointer, not the model: run `git lfs pull`")
