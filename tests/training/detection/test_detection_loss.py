"""The grid's arithmetic, which cells answer for which object, and the loss."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch: pip install 'edgepose[train]'")

from edgepose.errors import InputError
from edgepose.training.detection.garments import GARMENT_TYPES, GROUPS
from edgepose.training.detection.loss import DetectionLoss, assign, class_targets, pairwise_iou
from edgepose.training.detection.network import GarmentDetector, decode, grid

SIZE = (96, 64)  # (w, h), unequal so that a swap shows
CELLS = 12 * 8 + 6 * 4 + 3 * 2


def raw_predictions(classes: int = 3) -> torch.Tensor:
    """(1, A, 5 + C): boxes of two strides around each cell's centre, nothing sure."""
    raw = torch.zeros(1, CELLS, 5 + classes)
    raw[..., :2] = 0.5
    raw[..., 2:4] = torch.log(torch.tensor(2.0))
    raw[..., 4:] = -4.0
    return raw


def test_the_grid_and_its_boxes() -> None:
    corners, strides = grid(SIZE)
    assert corners.shape == (CELLS, 2)
    assert corners[13].tolist() == [1.0, 1.0]  # the second row of twelve
    assert strides.unique(return_counts=True)[1].tolist() == [96, 24, 6]
    boxes = decode(raw_predictions(), corners, strides)[0]
    assert boxes[13].tolist() == pytest.approx([4.0, 4.0, 20.0, 20.0])  # centre 12, 12; 16 px wide
    assert boxes[96].tolist() == pytest.approx([-8.0, -8.0, 24.0, 24.0])  # the first of stride 16


def test_the_network_gives_a_row_for_each_cell() -> None:
    torch.manual_seed(0)
    network = GarmentDetector(3, channels=8).eval()
    with torch.inference_mode():
        raw = network(torch.zeros(2, 3, SIZE[1], SIZE[0]))
    assert raw.shape == (2, CELLS, 8)
    assert raw[..., 4:].sigmoid().mean() == pytest.approx(0.01, abs=0.01)  # at first nothing is there
    with pytest.raises(InputError, match="at least 1 class"):
        GarmentDetector(0)


def test_rows_lie_where_the_grid_says() -> None:
    """A spot in the picture moves the row of the cell that it lies in more than any other of its level."""
    torch.manual_seed(0)
    network = GarmentDetector(3, channels=8).eval()
    corners, strides = grid(SIZE)
    flat = torch.zeros(1, 3, SIZE[1], SIZE[0])
    spot = flat.clone()
    spot[:, :, 36:44, 68:76] = 3.0  # around the cell 9 - 8.5 .. of stride 8: column 8 or 9, row 4 or 5
    with torch.inference_mode():
        change = (network(spot) - network(flat)).abs().sum(-1)[0]
    fine = strides == 8
    most = corners[fine][change[fine].argmax()]
    # Random filters of 5x5 look up to a few cells around; seen: one cell off
    assert (most - torch.tensor([8.5, 4.5])).abs().max() <= 3


def test_overlaps_in_batches() -> None:
    a = torch.tensor([[[0.0, 0, 10, 10]]])
    b = torch.tensor([[[0.0, 0, 10, 5], [5.0, 0, 15, 10], [20.0, 0, 30, 10]]])
    assert pairwise_iou(a, b)[0, 0].tolist() == pytest.approx([0.5, 1 / 3, 0.0])


def _assigned(boxes: list[list[float]], labels: list[int], raw: torch.Tensor | None = None) -> tuple[object, ...]:
    raw = raw_predictions() if raw is None else raw
    corners, strides = grid(SIZE)
    groups = torch.ones(1, 3, dtype=torch.bool)
    objects, kinds = torch.tensor([boxes]), torch.tensor([labels])
    targets, known = class_targets(kinds, groups)
    valid = torch.ones(1, len(labels), dtype=torch.bool)
    found = assign(raw, decode(raw, corners, strides), corners, strides, objects, targets, known, valid)
    return found, corners, strides


def test_the_cell_that_fits_answers() -> None:
    found, corners, strides = _assigned([[32.0, 16.0, 48.0, 32.0]], [1])  # 16 px around 40, 24: between cells of 8
    cells = found.positive[0].nonzero()[:, 0]
    assert len(cells) >= 1
    centres = (corners[cells] + 0.5) * strides[cells, None]
    assert ((centres - torch.tensor([40.0, 24.0])).abs() <= 2.5 * strides[cells, None]).all()
    assert (strides[cells] == 8).any()  # a box of two strides of 8 is predicted there alone
    assert (found.overlaps[0][~found.positive[0]] == 0).all()


def test_a_cell_answers_for_one_object() -> None:
    found, *_ = _assigned([[32.0, 16.0, 48.0, 32.0], [34.0, 16.0, 50.0, 32.0]], [0, 1])
    numbers = found.objects[0][found.positive[0]]
    assert set(numbers.tolist()) == {0, 1}  # close together, and still each has its own cells


def test_a_sure_class_wins_the_cell() -> None:
    """Two objects in one place: the cell goes to the one whose class it names."""
    raw = raw_predictions()
    raw[..., 4] = 4.0
    raw[..., 5 + 2] = 4.0
    box = [32.0, 16.0, 48.0, 32.0]
    found, *_ = _assigned([box, box], [0, 2], raw)
    assert set(found.objects[0][found.positive[0]].tolist()) == {1}


def test_an_object_that_is_not_valid_gets_nothing() -> None:
    corners, strides = grid(SIZE)
    loss = DetectionLoss(corners, strides, torch.ones(1, 3, dtype=torch.bool))
    raw = raw_predictions().requires_grad_()
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    parts = loss(raw, torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.int64), nothing)
    assert parts["box"] == 0
    assert parts["class"] == 0
    sum(parts.values()).backward()
    assert raw.grad[..., :4].abs().max() == 0
    assert (raw.grad[..., 4] > 0).all()  # objectness goes down everywhere


def test_a_type_that_is_not_known_says_only_what_it_is_not() -> None:
    groups = torch.from_numpy(GROUPS)
    targets, weights = class_targets(torch.tensor([[GARMENT_TYPES.index("shorts"), -2]]), groups)
    assert targets[0, 0].nonzero()[:, 0].tolist() == [GARMENT_TYPES.index("shorts")]
    assert (weights[0, 0] == 1).all()
    assert (targets[0, 1] == 0).all()
    lower = {"shorts", "trousers", "skirt"}
    assert {name for name, weight in zip(GARMENT_TYPES, weights[0, 1], strict=True) if weight == 0} == lower


def test_learning_fits_one_picture() -> None:
    """The loss leads free predictions to the object: its gradient is right in sign everywhere that matters."""
    corners, strides = grid(SIZE)
    loss = DetectionLoss(corners, strides, torch.ones(1, 3, dtype=torch.bool))
    raw = torch.nn.Parameter(raw_predictions())
    optimizer = torch.optim.Adam([raw], lr=0.1)
    box, label = torch.tensor([[[20.0, 10.0, 60.0, 50.0]]]), torch.tensor([[2]])
    for _ in range(150):
        optimizer.zero_grad()
        sum(loss(raw, box, label, torch.ones(1, 1, dtype=torch.bool)).values()).backward()
        optimizer.step()
    scores = raw[0, :, 4].sigmoid() * raw[0, :, 7].sigmoid()
    best = scores.argmax()
    assert scores[best] > 0.8
    found = decode(raw.detach(), corners, strides)[0, best]
    assert (found - box[0, 0]).abs().max() < 1.5  # px; Adam's steps of 0.1 leave about 0.5
