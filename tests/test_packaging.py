"""The wheel: what is in it, and that it works where there is no PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("edgepose", "benchmarks", "kernels", "training")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the sources, with two CUDA files planted among the kernels."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in PACKAGES:
        shutil.copytree(repository / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(repository / file, source)
    (source / "kernels/planted.cu").write_text("// a kernel\n")
    (source / "kernels/planted.cuh").write_text("// a header\n")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_every_source_file_the_kernels_and_the_models(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {"edgepose/py.typed", "edgepose/kernels/planted.cu", "edgepose/kernels/planted.cuh"}
    models, page = repository / "edgepose/models", repository / "edgepose/view_page"
    expected |= {f"edgepose/models/{path.relative_to(models).as_posix()}" for path in models.rglob("*.onnx")}
    expected |= {f"edgepose/view_page/{path.name}" for path in page.iterdir()}
    for folder in PACKAGES:
        root = repository / folder
        prefix = "edgepose" if folder == "edgepose" else f"edgepose/{folder}"
        expected |= {f"{prefix}/{path.relative_to(root).as_posix()}" for path in root.rglob("*.py")}
    labels = repository / "training/annotations"
    suffixes = ("*/*.json", "*/README.md", "*/LICENSE", "*/*.svg")
    published = {path.relative_to(labels).as_posix() for suffix in suffixes for path in labels.glob(suffix)}
    assert {"garments_cc0/train.json", "garments_cc0/val.json", "garments_cc0/LICENSE"} <= published
    expected |= {f"edgepose/training/annotations/{name}" for name in published}
    assert expected <= names, sorted(expected - names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    foreign = {name.split("/")[0] for name in names} - {"edgepose"}
    assert all(name.endswith(".dist-info") for name in foreign), foreign  # no top-level `kernels`, `tests`, ...


def test_the_wheel_works_without_torch(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'onnxscript', 'tensorboard']))\n"  # None: importing them fails
        "import edgepose\n"
        f"assert edgepose.__file__.startswith({str(site)!r}), edgepose.__file__\n"
        "from edgepose.cli import app\n"
        "app(sys.argv[1:])\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )

    demo = run("demo", "--frames", "3", "-o", "clip.mp4")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert (tmp_path / "clip.mp4").stat().st_size > 1000
    export = run("export", "deepfashion/full/resnet50", "--random-weights", "-o", "model.onnx")
    assert export.returncode == 1
    assert "pip install 'edgepose[train]'" in export.stderr
