import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import example_records
import pytest
from typer.testing import CliRunner

from edgepose.benchmarks import latency_rows, plots_latency, plots_scaling, plots_studies
from edgepose.benchmarks.records import Record, Row
from edgepose.cli import app
from edgepose.errors import InputError, MissingDependencyError

pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'edgepose[bench]'")

from edgepose.benchmarks.plots import PLOTTED, plot
from edgepose.benchmarks.plots_style import number, style

SLUG = "example-cpu-9000"


def texts(figure) -> str:
    """All that is written in a figure."""
    import matplotlib.text

    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def drawn(draw, record: Record) -> dict:
    with style():
        return dict(draw(record))


def test_the_same_record_gives_the_same_bytes_of_png_and_svg(tmp_path):
    record = example_records.throughput()
    first, second = plot(record, tmp_path / "a"), plot(record, tmp_path / "b")
    assert [path.name for path in first] == [f"throughput--{SLUG}.png", f"throughput--{SLUG}.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert cv2.imread(str(first[0])).shape[1] == 1800  # twice the width that a README shows
    assert b"<dc:date>" not in first[1].read_bytes()
    assert ElementTree.parse(first[1]).getroot().tag.endswith("svg")


def test_nothing_global_is_left_behind(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot(example_records.throughput(), tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_bars_of_latency_name_every_way_with_its_time_and_our_lead_at_the_same_precision():
    record = example_records.latency()
    figures = drawn(plots_latency.latency, record)
    assert list(figures) == ["", "boxes", "frame"]
    words = texts(figures[""])
    for way, precision in example_records.WAYS:
        assert latency_rows.key_of(way, precision) in words
    assert "470 ms   1.21 x" in words  # rtmlib: 470 / 390
    assert "300 ms   2.31 x" in words  # rtmlib int8: 300 / 130, not / 390
    assert "\n390 ms\n" in words  # ours has no lead over itself
    assert "resnet50, 8 boxes on 1080p" in words
    assert f"{record.device}, 2030-01-02, commit 0123456789ab" in words


def test_our_bar_is_as_long_as_its_stages_and_others_are_one_piece():
    figure = drawn(plots_latency.latency, example_records.latency())[""]
    bars = figure.axes[0].patches
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    assert max(ends[:4]) == pytest.approx(130)  # int8, the fastest, in four stages
    assert 300 in [pytest.approx(end) for end in ends[4:5]]
    assert len(bars) == 2 * 4 + 6


def test_slower_ways_are_not_hidden_behind_faster_ones_in_a_plot_where_we_lose():
    figure = drawn(plots_latency.latency, example_records.latency(slower=2.0))[""]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names.index("openvino") < names.index("edgepose")


def test_latency_of_one_number_of_boxes_has_no_curves():
    record = example_records.latency()
    rows = [row for row in record.rows if row.labels.get("boxes") == 8 and row.labels["frame"] == "1920x1080"]
    assert list(drawn(plots_latency.latency, example_records.record("latency", rows))) == [""]


def test_latency_of_a_gpu_keeps_host_and_device_clocks_apart():
    """Stages of the device's clock that exceed the host's total are no parts of the bar."""
    at = {"model": "m", "frame": "1920x1080", "boxes": 8, "precision": "fp16"}
    rows = [Row({**at, "way": "edgepose", "stage": "total"}, "ms", example_records.times(1.0))]
    rows += [Row({**at, "way": "edgepose", "stage": "network"}, "ms", example_records.times(1.5))]
    rows += [Row({**at, "way": "pytorch", "stage": "total"}, "ms", example_records.times(2.0))]
    rows += [Row({**at, "way": "pytorch", "stage": "ratio"}, "ratio", {"value": 2.0, "low": 1.9, "high": 2.1})]
    figures = drawn(plots_latency.latency, example_records.record("latency", rows))
    assert len(figures[""].axes[0].patches) == 2
    assert "2.00 ms   2.00 x".replace("2.00 ms", "2 ms") in texts(figures[""])


def without_intervals(record: Record) -> Record:
    rows = [
        Row(row.labels, row.unit, {key: value for key, value in row.values.items() if key not in ("low", "high")})
        for row in record.rows
    ]
    return example_records.record(record.suite, rows, record.notes)


@pytest.mark.parametrize("name", sorted(example_records.ALL))
def test_records_of_few_rounds_are_drawn_without_intervals(name):
    record = example_records.ALL[name]()
    draw = {**vars(plots_latency), **vars(plots_scaling), **vars(plots_studies)}[name]
    assert list(drawn(draw, without_intervals(record))) == list(drawn(draw, record))


def test_scaling_has_a_plot_for_each_axis_with_its_sentence():
    record = example_records.scaling()
    figures = drawn(plots_scaling.scaling, record)
    assert list(figures) == ["boxes", "frame", "keypoints", "memory", "load"]
    assert "cut into parts" in texts(figures["boxes"])
    assert "cut into parts" not in texts(figures["frame"])
    assert "hrnet_w48" in texts(figures["load"])
    only = [row for row in record.rows if row.labels["axis"] == "frame"]
    assert list(drawn(plots_scaling.scaling, example_records.record("scaling", only))) == ["frame"]


def test_startup_tells_whole_starts_and_that_pytorch_only_imports():
    words = texts(drawn(plots_studies.startup, example_records.startup())[""])
    for text in ("412 ms", "920 ms, imports only", "garment-landmarks, cold file cache", "import onnxruntime"):
        assert text in words
    assert "second prediction" not in words


def test_settings_mark_the_default_and_tell_what_moves():
    figures = drawn(plots_studies.settings, example_records.settings())
    assert list(figures) == ["resnet50", "random-model"]
    bold = [label.get_text() for label in figures["resnet50"].axes[0].get_yticklabels() if label.get_weight() == "bold"]
    assert bold == ["edgepose, default, fp32"]
    assert "landmarks move" in texts(figures["resnet50"])
    assert "heatmaps differ" in texts(figures["random-model"])  # its landmarks would be noise


def test_kernels_show_all_threads_and_every_way():
    figure = drawn(plots_studies.kernels, example_records.kernels())[""]
    words = texts(figure)
    assert "Kernels with 2 threads" in words
    assert "crop_warp: opencv4, 8 crops" in words
    assert [list(line.get_xdata()) for line in figure.axes[1].lines] == [[2.0, 2.0], [5.0, 5.0]]


@pytest.mark.parametrize("suite", sorted(PLOTTED))
def test_a_record_without_rows_has_no_plots(suite, tmp_path):
    assert plot(example_records.record(suite, []), tmp_path) == []


def test_a_suite_without_plots_has_none(tmp_path):
    assert plot(example_records.record("streams", [Row({"way": "edgepose"}, "ms", {"p50": 1.0})]), tmp_path) == []


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgepose\[bench\]'"):
        plot(example_records.throughput(), tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"plots cannot be written to .*file"):
        plot(example_records.throughput(), tmp_path / "file")


def test_the_command_draws_beside_the_file_or_where_it_is_told(tmp_path: Path):
    path = example_records.throughput().save(tmp_path)
    outcome = CliRunner().invoke(app, ["bench", "plot", str(path), "-o", str(tmp_path / "out")])
    assert outcome.exit_code == 0, outcome.output
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [f"{path.stem}.png", f"{path.stem}.svg"]
    assert CliRunner().invoke(app, ["bench", "plot", str(path)]).exit_code == 0
    assert path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (4.561, "4.56"), (78.94, "78.9"), (1234.5, "1234")]
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert number(value) == text
