"""ModelSpec: the round trips, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from painter import painter_spec, write_painter

from edgepose import ModelError, ModelSpec


def minimal() -> dict:
    return {
        "name": "m",
        "input_size": [192, 256],
        "heatmap_size": [48, 64],
        "keypoint_names": ["a", "b"],
        "flip_indices": [1, 0],
    }


def test_json_round_trip() -> None:
    spec = painter_spec(flip_indices=(2, 1, 0), category="shirts", padding=1.1)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(spec.to_json(indent=2)) == spec


def test_defaults_are_filled_in() -> None:
    spec = ModelSpec.from_json(json.dumps(minimal()))
    assert (spec.codec, spec.refinement, spec.padding, spec.num_keypoints) == ("msra", "shift", 1.25, 2)


def test_onnx_round_trip_replaces_and_keeps(tmp_path: Path) -> None:
    path = write_painter(tmp_path / "m.onnx", painter_spec())
    model = onnx.load(path)
    other = model.metadata_props.add()
    other.key, other.value = "author", "somebody"
    changed = painter_spec(license="MIT")
    changed.write_metadata(model)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert len(model.metadata_props) == 2
    assert metadata["author"] == "somebody"
    assert ModelSpec.from_metadata(metadata, source="m.onnx") == changed


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(painter_spec().to_json(indent=2), encoding="utf-8")
    assert ModelSpec.from_file(path) == painter_spec()
    assert ModelSpec.from_file(str(path)) == painter_spec()


def test_missing_spec_shows_a_usable_example() -> None:
    with pytest.raises(ModelError, match=r"--spec spec\.json") as caught:
        ModelSpec.from_metadata({}, source="foreign.onnx")
    example = str(caught.value)[str(caught.value).index("{\n") :]
    assert ModelSpec.from_json(example).num_keypoints == 2


@pytest.mark.parametrize("missing", sorted(minimal()))
def test_required_keys(missing: str) -> None:
    data = minimal()
    del data[missing]
    with pytest.raises(ModelError, match=rf"'{missing}'\] are missing"):
        ModelSpec.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown keys.*colour"),
        ({"schema": 2}, "schema 2"),
        ({"input_size": [192]}, "input_size"),
        ({"input_size": "192x256"}, "input_size: expected a list of integers"),
        ({"input_size": [192.0, 256]}, "integers"),
        ({"heatmap_size": [48, 1]}, "heatmap_size"),
        ({"keypoint_names": []}, "empty"),
        ({"keypoint_names": ["a", "a"]}, "twice"),
        ({"flip_indices": [0, 0]}, "permutation"),
        ({"flip_indices": [0]}, "permutation"),
        ({"skeleton": [[0, 2]]}, "skeleton"),
        ({"colors": [[0, 0, 0]]}, "colors"),
        ({"colors": [[0, 0, 300], [0, 0, 0]]}, "0..255"),
        ({"codec": "simcc"}, "codec must be one of msra, udp"),
        ({"refinement": "best"}, "refinement"),
        ({"sampling": "cubic"}, "sampling"),
        ({"blur_kernel": 10}, "odd"),
        ({"blur_kernel": 11.0}, "integer"),
        ({"codec": "udp", "flip_shift": True}, "flip_shift"),
        ({"std": [1, 1, 0]}, "std"),
        ({"padding": 0}, "padding"),
        ({"metrics": {"PCK": "good"}}, "number"),
        ({"training": {"epochs": 3}}, "string"),
    ],
)
def test_unusable_values(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelSpec.from_json(json.dumps({**minimal(), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "3"])
def test_text_that_is_not_an_object(text: str) -> None:
    with pytest.raises(ModelError, match="expected"):
        ModelSpec.from_json(text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        ModelSpec.from_file(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ModelError, match="not a text file"):
        ModelSpec.from_file(tmp_path / "binary.json")


def test_lists_become_tuples_so_that_equal_specs_compare_equal() -> None:
    fields = {"name": "a", "flip_indices": [1, 0], "skeleton": [[0, 1]], "input_size": [64, 32]}
    spec = ModelSpec(heatmap_size=(16, 8), keypoint_names=["left", "right"], **fields)
    assert spec == ModelSpec.from_json(spec.to_json())
    with pytest.raises(ModelError, match="skeleton: expected a list"):
        ModelSpec(heatmap_size=(16, 8), keypoint_names=["left", "right"], **{**fields, "skeleton": [3]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoint_names": "abc"}, "keypoint_names: expected a list of strings"),
        ({"name": 5}, "name: expected a string"),
        ({"padding": float("inf")}, "padding: expected a finite number"),
        ({"padding": "x"}, "padding: expected a finite number"),
        ({"mean": (float("nan"), 0, 0)}, "mean: expected a finite number"),
        ({"metrics": [1]}, "metrics: expected an object"),
        ({"flip_indices": (0, "a")}, "flip_indices: expected a list of integers"),
        ({"keypoint_names": ["a", "b", "c"], "flip_indices": (1, 2, 0)}, "a permutation of 0..2 that undoes itself"),
    ],
)
def test_the_constructor_checks_every_field(change: dict[str, object], message: str) -> None:
    fields = {"name": "a", "input_size": (64, 32), "heatmap_size": (16, 8), "keypoint_names": ["l", "r"]}
    with pytest.raises(ModelError, match=message):
        ModelSpec(**{**fields, "flip_indices": (1, 0), **change})


def test_a_spec_is_hashable_and_keeps_its_own_metrics() -> None:
    metrics = {"PCK@0.2": 0.9}
    spec = ModelSpec("a", (64, 32), (16, 8), ("l", "r"), (1, 0), metrics=metrics)
    metrics["PCK@0.2"] = 0.1
    assert spec.metrics == {"PCK@0.2": 0.9}
    assert hash(spec) == hash(ModelSpec.from_json(spec.to_json()))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ({"warm": (0, 4)}, "within 0..3"),
        ({"warm": (2, 2)}, "within 0..3"),
        ({"warm": (0, 1, 2)}, "within 0..3"),
        ({"warm": 3}, "expected a list of integers"),
        ([0, 1], "expected an object of channel ranges"),
        ({"warm": (0, 1), "cool": (1, 3)}, "flip_indices lead out of the channels .* of the category 'warm'"),
    ],
)
def test_categories_that_do_not_fit(categories: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        painter_spec(flip_indices=(1, 0, 2), categories=categories)


def test_categories_survive_json() -> None:
    spec = painter_spec(categories={"warm": (0, 2), "cool": [2, 3]})
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert spec.categories["cool"] == (2, 3)


# Networks that differ from ours ------------------------------------------------------------------------


def foreign(**changes: object) -> ModelSpec:
    return ModelSpec.from_json(json.dumps({**minimal(), **changes}))


def test_a_spec_of_our_own_says_nothing_of_foreign_networks() -> None:
    spec = painter_spec()
    assert spec.is_canonical
    assert spec.canonical() is spec
    assert not {"color", "layout", "scale", "heatmap_layout", "output", "heatmap_channels"} & set(
        json.loads(spec.to_json())
    )


def test_canonical_folds_scale_and_order_into_mean_and_std() -> None:
    values = {
        "color": "bgr", "layout": "nhwc", "scale": 1 / 255, "mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3],
        "heatmap_layout": "nhwc", "output": "heat", "heatmap_channels": [1, 3],
        "activation": "sigmoid",
    }  # fmt: skip
    spec = foreign(**values)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert not spec.is_canonical
    canonical = spec.canonical()
    assert canonical.is_canonical
    assert (canonical.keypoint_names, canonical.heatmap_channels) == (spec.keypoint_names, ())
    level = np.arange(256.0)
    for rgb, bgr in enumerate((2, 1, 0)):
        theirs = (level * spec.scale - spec.mean[bgr]) / spec.std[bgr]
        # float64 rounds each of three operations; worst seen 9e-16
        np.testing.assert_allclose((level - canonical.mean[rgb]) / canonical.std[rgb], theirs, atol=1e-14)


def test_openposes_normalisation_is_no_mistake() -> None:
    """level / 256 - 0.5: a std of 1 says that there is none, whatever the scale."""
    canonical = foreign(scale=1 / 256, mean=[0.5] * 3, std=[1, 1, 1]).canonical()
    assert (canonical.mean, canonical.std) == ((128, 128, 128), (256, 256, 256))


def test_canonical_is_exact_where_the_scale_is_one() -> None:
    canonical = foreign(color="bgr", mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395]).canonical()
    assert canonical == foreign(name=canonical.name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": "grey"}, "color must be one of rgb, bgr, got 'grey'"),
        ({"layout": "chw"}, "layout must be one of nchw, nhwc"),
        ({"heatmap_layout": "hwc"}, "heatmap_layout must be one of nchw, nhwc"),
        ({"scale": 0}, "scale must be positive"),
        ({"scale": "1/255"}, "scale: expected a finite number"),
        ({"output": 0}, "output: expected a string"),
        ({"heatmap_channels": [0]}, "heatmap_channels must be empty or hold 2 channels"),
        ({"heatmap_channels": [1, 1]}, "different channels"),
        ({"heatmap_channels": [-1, 0]}, "from 0 on"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, '"scale": 0.00392156862745098 as well'),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "are those of levels 0-1"),
        ({"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}, "are those of levels 0-1"),
        ({"mean": [0, 0, 0], "std": [1 / 255] * 3}, "are those of levels 0-1"),
        ({"activation": "softmax"}, "activation must be one of none, sigmoid"),
        ({"scale": 1 / 255}, "in units of level .* scale"),
        ({"scale": 1 / 255, "mean": [0, 0, 0]}, "in units of level .* scale"),
        ({"color": "bgr"}, r"in the order blue, green, red, ImageNet's as \(103.53, 116.28, 123.675\)"),
        ({"color": "bgr", "mean": [0, 0, 0]}, "in the order blue, green, red"),
    ],
)
def test_statements_about_foreign_networks_that_cannot_be_meant(change: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        foreign(**change)
