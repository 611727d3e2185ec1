"""The pages in docs/ are true where it can be tested: Python parses, runs unless it says what it needs; extras exist.

A block finds ``frame``, a rendered garment, ``predictor`` with both stages, and ``clip.mp4``. One that begins with the
comment ``# needs ...`` (a GPU, cameras, files of the reader's) is parsed only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgepose import Predictor
from edgepose.media import VideoWriter
from edgepose.training.synthetic import MovingGarment

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder with a clip, and the names that blocks may use."""
    folder = tmp_path_factory.mktemp("docs")
    garment = MovingGarment(frames=4, seed=1)
    frames = [garment.frame(number).image for number in range(4)]
    with VideoWriter(folder / "clip.mp4", 10) as writer:
        for frame in frames:
            writer.write(frame)
    with Predictor("garment-landmarks-fast", detector="garment-detector") as predictor:
        yield folder, {"frame": frames[0], "predictor": predictor}


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks(code: str, world: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    tree = ast.parse(code)
    if not code.startswith("# needs "):
        folder, names = world
        monkeypatch.chdir(folder)
        exec(compile(tree, "docs", "exec"), dict(names))


def test_there_are_blocks_to_test() -> None:
    assert len(BLOCKS) >= 3


def test_every_extra_that_a_text_names_exists(repository: Path) -> None:
    project = (repository / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([a-z0-9-]+) = \[", project.partition("[project.optional-dependencies]")[2], re.M))
    texts = [
        *PAGES,
        *repository.glob("*.md"),
        *(repository / "edgepose").rglob("*.py"),
        *(repository / "kernels").glob("*.py"),
    ]
    for path in texts:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:edgepose|'\.)\[([a-z][a-z0-9-]*)\]", text))
        assert named <= extras, f"{path.name} names {sorted(named - extras)}"
