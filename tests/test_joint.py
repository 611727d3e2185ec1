"""One spec for several models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from painter import painter_spec

from edgepose import ModelError, ModelSpec
from edgepose.joint import joint_spec

SHIRT = painter_spec("udp", name="shirt", license="MIT", keypoint_names=("collar", "cuff", "hem"))
TROUSERS = painter_spec(
    "msra", name="trousers", keypoint_names=("waist", "hem", "knee"), flip_indices=(0, 2, 1), skeleton=((0, 2),)
)


def test_two_models() -> None:
    joint = joint_spec({"top": SHIRT, "trousers": TROUSERS})
    assert joint.name == "shirt + trousers"
    assert joint.keypoint_names == ("collar", "cuff", "top: hem", "waist", "trousers: hem", "knee")
    assert joint.categories == {"top": (0, 3), "trousers": (3, 6)}
    assert joint.flip_indices == (0, 1, 2, 3, 5, 4)
    assert joint.skeleton == ((0, 1), (1, 2), (3, 5))
    assert joint.colors == SHIRT.colors + TROUSERS.colors
    assert joint.license == "MIT AND Apache-2.0"
    assert ModelSpec.from_json(joint.to_json()) == joint


def test_one_model_for_several_categories() -> None:
    """The same object is one model; an equal spec of another file is another model."""
    joint = joint_spec({"top": SHIRT, "trousers": TROUSERS, "shorts": TROUSERS})
    assert joint.categories == {"top": (0, 3), "trousers": (3, 6), "shorts": (3, 6)}
    assert joint.num_keypoints == 6
    assert joint_spec({"trousers": TROUSERS, "shorts": replace(TROUSERS)}).keypoint_names == (
        "trousers: waist",
        "trousers: hem",
        "trousers: knee",
        "shorts: waist",
        "shorts: hem",
        "shorts: knee",
    )


def test_a_model_that_has_categories_itself() -> None:
    both = replace(TROUSERS, categories={"trousers": (0, 1), "shorts": (1, 3)})
    joint = joint_spec({"top": SHIRT, "shorts": both, "trousers": both})
    assert joint.categories == {"top": (0, 3), "shorts": (4, 6), "trousers": (3, 4)}
    assert joint.keypoint_names[3:] == ("waist", "shorts: hem", "knee")
    with pytest.raises(ModelError, match="is to serve 'skirt', but its categories are trousers, shorts"):
        joint_spec({"top": SHIRT, "skirt": both})


def test_colors_only_if_all_have_some() -> None:
    assert joint_spec({"top": SHIRT, "trousers": replace(TROUSERS, colors=())}).colors == ()
