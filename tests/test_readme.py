"""The README is true: its Python runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edgepose.cli import app
from edgepose.media import VideoWriter
from edgepose.training.synthetic import render_garment


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, stream = re.findall(r"```python\n(.*?)```", readme, re.S)
    sample = render_garment(np.random.default_rng(1), (300, 400))
    cv2.imwrite(str(tmp_path / "shirt.jpg"), sample.image)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(code, names)
    result = names["result"]
    assert result.keypoints.shape == (1, 8, 2)
    assert cv2.imread(str(tmp_path / "landmarks.png")).shape == sample.image.shape
    with VideoWriter(tmp_path / "clip.mp4", 10) as writer:
        for _ in range(3):
            writer.write(sample.image)
    exec(stream, names)
    assert names["result"].track_ids is not None


def test_every_command_in_the_texts_exists(repository: Path) -> None:
    commands = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    for path in [repository / "README.md", repository / "CHANGELOG.md", *(repository / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:^|[`/])edgepose ([a-z][a-z-]+)(?= |`|$)", text, re.M))
        assert named <= commands, (path.name, named - commands)


def test_links_and_pictures_of_the_texts_exist(repository: Path) -> None:
    texts = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    assert len(texts) >= 4
    for path in texts:
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name} points to {target}"


def test_the_readme_gives_both_set_up_commands(readme: str) -> None:
    lines = [line for line in readme.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("edgepose demo")
    assert lines[1].endswith("-m pytest -n auto")
    assert CliRunner().invoke(app, ["demo", "--help"]).exit_code == 0
