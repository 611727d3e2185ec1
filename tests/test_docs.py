"""The pages in docs/ are true where that can be tested: Python parses, and runs unless it needs a GPU; extras exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_blocks(code: str) -> None:
    tree = ast.parse(code)
    if not code.startswith("# needs a GPU\n"):
        exec(compile(tree, "docs", "exec"), {})


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
