"""The models that come with the package: each ``*.onnx`` in this folder, under the name of its file.

Everything about a model stands in the spec inside the file, so there is no list to keep.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from edgepose.errors import ModelError

__all__ = ["ENGINE_SUFFIXES", "bundled_models", "find_model"]

ENGINE_SUFFIXES = frozenset({".engine", ".plan", ".trt"})  # of TensorRT engines
_CHECKPOINT_SUFFIXES = {".pth", ".pt", ".ckpt", ".safetensors"}
_LFS_POINTER = b"version https://git-lfs"


def bundled_models() -> dict[str, Path]:
    """The models that come with edgepose, by name; ``Predictor(name)`` takes each of them."""
    paths = Path(__file__).parent.glob("*.onnx")
    return {path.stem: path for path in sorted(paths, key=lambda path: path.stem)}


def find_model(model: str | Path) -> Path:
    """The file of a model.

    Args:
        model: a bundled name, or the path of an ONNX file or of a TensorRT engine. A string without a suffix and
            without a folder is a name, unless a file of that name exists.

    Raises:
        ModelError: there is no such name or file, or the file cannot be a model.
    """
    path = Path(model)
    if isinstance(model, str) and not path.suffix and path.name == model and not path.is_file():
        return _bundled(model)
    if path.suffix.lower() in _CHECKPOINT_SUFFIXES:
        raise ModelError(
            f"{path} is a checkpoint, and the runtime takes ONNX models. Export it first: "
            f"edgepose export RECIPE --checkpoint {path} -o model.onnx"
        )
    if path.is_dir():
        raise ModelError(f"{path} is a folder: pass the path of one .onnx file, or a bundled name: {_names()}")
    if not path.is_file():
        if path.suffix.lower() in ENGINE_SUFFIXES:
            raise ModelError(f"there is no engine file {path}. Build it: edgepose build model.onnx -o {path}")
        raise ModelError(
            f"there is no model file {path}. Pass the path of an .onnx file, or a bundled name: {_names()}"
        )
    _check_content(path)
    return path


def _bundled(name: str) -> Path:
    models = bundled_models()
    if name in models:
        return models[name]
    close = get_close_matches(name, models, n=3, cutoff=0.5)
    guess = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ModelError(
        f"there is no bundled model {name!r}.{guess} Bundled: {_names()}; or pass the path of an .onnx file"
    )


def _names() -> str:
    return ", ".join(bundled_models()) or "none in this installation"


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
