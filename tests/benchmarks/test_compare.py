from io import StringIO

import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgepose.benchmarks.compare import compare, print_table
from edgepose.benchmarks.records import Record, Row
from edgepose.cli import app
from edgepose.errors import InputError

ENVIRONMENT = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "0" * 12,
    "command": "edgepose bench latency",
    "python": "3.11.7",
    "os": "Linux x86_64",
    "versions": {"numpy": "2.4.0"},
    "cpu": {"name": "A processor", "cores": 2, "usable": 2, "flags": []},
    "load_average": [1.0, 1.0, 1.0],
}


def time(p50: float, width: float = 0.02, **labels) -> Row:
    values = {"p50": p50, "low": p50 * (1 - width), "high": p50 * (1 + width), "runs": 30}
    return Row({"way": "edgepose", "boxes": 8, "stage": "total", **labels}, "ms", values)


def record(*rows: Row, suite: str = "latency", device: str = "A processor", **environment) -> Record:
    return Record(suite, device, {**ENVIRONMENT, **environment}, rows)


def verdict(old: Row, new: Row, **options) -> str:
    (change,) = compare(record(old), record(new), **options).changes
    return change.verdict


def test_a_time_that_grew_beyond_tolerance_and_chance_is_worse():
    assert verdict(time(100), time(110)) == "worse"
    assert verdict(time(100), time(90)) == "better"
    assert verdict(time(100), time(104)) == "same"  # within the tolerance
    assert verdict(time(100, width=0.1), time(110, width=0.1)) == "same"  # the intervals touch
    assert verdict(time(100), time(110), tolerance=0.2) == "same"


@pytest.mark.parametrize(
    ("labels", "unit", "old", "new", "expected"),
    [
        ({"stage": "total", "against": "rtmlib"}, "ratio", 1.3, 1.1, "worse"),
        ({"arrangement": "one"}, "frames/s", 20, 25, "better"),
        ({"statistic": "landmark change"}, "px", 0.3, 0.6, "worse"),
        ({"statistic": "landmark change"}, "px", 0.001, 0.002, "same"),  # a thousandth of a pixel
        ({"statistic": "PCK@0.2"}, "ratio", 0.981, 0.970, "worse"),  # 1 % of it, and ten garments of a thousand
        ({"statistic": "PCK@0.2"}, "ratio", 0.981, 0.979, "same"),
        ({"statistic": "PCK@0.05"}, "ratio", 0.88, 0.90, "better"),
        ({"stage": "ratio"}, "ratio", 1.3, 1.1, "worse"),  # of a GPU: how many times as fast ours is
        ({"statistic": "speed-up"}, "ratio", 1.3, 1.1, "worse"),
        ({"statistic": "heatmap difference"}, "ratio", 0.1, 0.2, "worse"),
        ({"axis": "memory"}, "MB", 100, 120, "worse"),
        ({"statistic": "landmark change"}, "px", 0.0, 0.5, "worse"),
    ],
)
def test_each_kind_of_number_has_its_better_side(labels, unit, old, new, expected):
    assert verdict(Row(labels, unit, {"value": old}), Row(labels, unit, {"value": new})) == expected


def test_rows_of_several_figures_are_compared_one_by_one():
    labels = {"case": "as it is"}
    old = Row(labels, "fractions", {"PCK@0.2": 0.98, "PCK@0.05": 0.90, "EPE": 10.0})
    new = Row(labels, "fractions", {"PCK@0.2": 0.98, "PCK@0.05": 0.88, "EPE": 8.0})
    changes = compare(record(old), record(new)).changes
    assert {str(change.labels["figure"]): change.verdict for change in changes} == {
        "PCK@0.2": "same",
        "PCK@0.05": "worse",
        "EPE": "better",
    }


def test_worst_first_and_rows_of_one_record_are_told():
    old = record(time(100, model="a"), time(100, model="b"), time(100, model="c"), time(5, model="gone"))
    new = record(time(120, model="a"), time(150, model="b"), time(50, model="c"), time(7, model="added"))
    comparison = compare(old, new)
    assert [change.labels["model"] for change in comparison.changes] == ["b", "a", "c"]
    assert [change.labels["model"] for change in comparison.worse] == ["b", "a"]
    assert [row.labels["model"] for row in comparison.gone] == ["gone"]
    assert [row.labels["model"] for row in comparison.added] == ["added"]


def test_what_makes_two_records_hard_to_compare_is_told():
    old = record(time(1))
    new = record(time(1), device="Another", python="3.12.1", versions={"numpy": "2.5.0"}, load_average=[9.0, 1.0, 1.0])
    text = "\n".join(compare(old, new).warnings)
    for words in ("two devices", "python: 3.11.7 then, 3.12.1 now", "numpy: 2.4.0 then", "busy machine: load 9.0"):
        assert words in text
    assert compare(old, old).warnings == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cpu": {**ENVIRONMENT["cpu"], "usable": 1}}, "usable: 2 then, 1 now"),
        ({"cpu": {**ENVIRONMENT["cpu"], "flags": ["avx2"]}}, "flags: [] then, ['avx2'] now"),
        ({"cpu": {**ENVIRONMENT["cpu"], "governor": "powersave"}}, "governor: None then, powersave now"),
        ({"variables": {"OMP_NUM_THREADS": "1"}}, "variables: None then, {'OMP_NUM_THREADS': '1'} now"),
    ],
)
def test_another_processor_or_environment_is_told(change, words):
    assert compare(record(time(1)), record(time(1), **change)).warnings == (words,)
    assert compare(record(time(1)), record(time(1), variables={})).warnings == ()  # none, and not told: the same


@pytest.mark.parametrize(
    ("old", "new", "options", "words"),
    [
        (record(time(1)), record(time(1), suite="startup"), {}, "latency and startup"),
        (record(time(1)), record(time(1, way="x")), {}, "no row in common"),
        (record(time(1)), record(time(1)), {"tolerance": 1.0}, "tolerance"),
        (record(time(1), time(2)), record(time(1)), {}, "two rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(old, new, options, words):
    with pytest.raises(InputError, match=words):
        compare(old, new, **options)


def test_the_command_fails_on_a_regression_only(tmp_path):
    old, slow, fast = (tmp_path / name for name in ("old", "slow", "fast"))
    paths = [record(time(p50)).save(folder) for folder, p50 in ((old, 100), (slow, 150), (fast, 60))]
    run = CliRunner().invoke
    failed = run(app, ["bench", "compare", str(paths[0]), str(paths[1])])
    assert failed.exit_code == 1
    assert "1 worse" in failed.output
    passed = run(app, ["bench", "compare", str(paths[0]), str(paths[2])])
    assert passed.exit_code == 0, passed.output
    assert "1 better" in passed.output
    assert run(app, ["bench", "compare", str(paths[0]), str(paths[1]), "--tolerance", "0.6"]).exit_code == 0
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    assert run(app, ["bench", "compare", str(paths[0]), str(broken)]).exit_code == 1


def test_the_table_names_what_changed():
    stream = StringIO()
    comparison = compare(record(time(100, model="a [x]")), record(time(200, model="a [x]")))
    print_table(comparison, Console(file=stream, width=200))
    assert "a [x]" in stream.getvalue()
    assert "2.000" in stream.getvalue()
    assert "1 figures judged: 1 worse" in stream.getvalue()


def test_peers_leads_and_stages_are_told_and_not_judged():
    stream = StringIO()
    lead = Row({"way": "edgepose", "stage": "total", "against": "rtmlib"}, "ratio", {"value": 2.0})
    old = [time(100), time(200, way="rtmlib"), lead, time(5, stage="crop"), time(9, step="import numpy")]
    less = Row(lead.labels, "ratio", {"value": 1.0})
    new = [time(100), time(100, way="rtmlib"), less, time(9, stage="crop"), time(20, step="import numpy")]
    found = compare(record(*old), record(*new))
    assert found.worse == []
    print_table(found, Console(file=stream, width=200))
    assert "worse, told" in stream.getvalue()
    assert "1 figures judged: 0 worse, 0 better, 1 the same; 4 told" in stream.getvalue()


def test_peers_tell_how_fast_the_machine_was():
    old = record(time(100), time(200, way="rtmlib"), time(300, way="openvino"))
    slow = record(time(150), time(310, way="rtmlib"), time(440, way="openvino"))
    found = compare(old, slow)
    assert found.worse == []
    assert any("the peers took 1.51 times as long" in text for text in found.warnings)
    worse = record(time(200), time(310, way="rtmlib"), time(440, way="openvino"))
    assert [change.new for change in compare(old, worse).worse] == [200]
    other = record(time(150), time(310, way="rtmlib"), versions={"numpy": "2.5.0"})  # their code changed: no measure
    assert [change.new for change in compare(old, other).worse] == [150]


def test_a_time_that_the_machine_excuses_is_shown_with_what_it_took():
    others = [time(200, way="rtmlib", boxes=boxes) for boxes in (16, 32)]
    old = record(time(100), time(200, way="rtmlib"), *others)
    new = record(time(150), time(300, way="rtmlib"), *others)
    found, stream = compare(old, new), StringIO()
    assert found.warnings == ()  # in the middle of all places the machine was as fast as before
    print_table(found, Console(file=stream, width=200))
    assert "same, the machine 1.50" in stream.getvalue()
    assert [change.machine for change in compare(old, record(time(100), *old.rows[1:])).changes] == [1, 1, 1, 1]


def test_ours_that_fell_out_is_a_regression():
    peer = time(200, way="rtmlib")
    found = compare(record(time(100), peer), record(peer))
    assert [row.labels["way"] for row in found.lost] == ["edgepose"]
    assert compare(record(time(100), time(100, boxes=16), peer), record(time(100), peer)).lost == ()  # fewer places
    unequal = compare(record(time(100), peer), record(time(100, unequal="yes"), peer))
    assert [row.labels["unequal"] for row in unequal.lost] == ["yes"]


def test_a_precision_of_ours_that_fell_out_is_lost_without_peers():
    both = record(time(100, precision="fp32"), time(50, precision="int8"))
    lost = compare(both, record(time(100, precision="fp32"))).lost
    assert [row.labels["precision"] for row in lost] == ["int8"]


def test_landmarks_that_are_others_in_one_record_only_are_told_of_the_way_whose_they_are():
    lead = {"against": "rtmlib"}
    alike = record(time(100), time(200, way="rtmlib"), Row({"way": "edgepose", **lead}, "ratio", {"value": 2.0}))
    rows = [
        time(200, way="rtmlib", unequal="yes"),
        Row({"way": "edgepose", "unequal": "yes", **lead}, "ratio", {"value": 2}),
    ]
    other = record(time(100), *rows)
    assert compare(alike, other).warnings == ("rtmlib: its landmarks are others in the new record only",)
    assert compare(other, alike).warnings == ("rtmlib: its landmarks are others in the old record only",)
    assert compare(other, other).warnings == ()
    assert compare(alike, other).lost == ()  # a peer's landmarks are no regression of ours


def test_the_command_fails_where_ours_is_lost(tmp_path):
    peer = time(200, way="rtmlib")
    paths = [record(*rows).save(tmp_path / name) for name, rows in (("old", (time(100), peer)), ("new", (peer,)))]
    result = CliRunner().invoke(app, ["bench", "compare", *map(str, paths)])
    assert result.exit_code == 1
    assert "lost:" in result.output


def test_facts_and_differences_are_not_judged():
    old = [
        Row({"clip": "a", "measure": "speed"}, "sizes/s", {"mean": 1.0}),
        Row({"pictures": "dark", "statistic": "EPE", "against": "as it is"}, "px", {"value": 0.1}),
        Row({"clip": "a", "measure": "overlap"}, "IoU", {"first loop": 0.95}),
    ]
    new = [Row(row.labels, row.unit, {name: 2 * value for name, value in row.values.items()}) for row in old[:2]]
    new.append(Row(old[2].labels, "IoU", {"first loop": 0.80}))
    assert [change.unit for change in compare(record(*old), record(*new)).worse] == ["IoU"]
    assert compare(record(*new), record(*old)).worse == []


def test_what_a_gpu_does_not_know_is_refused():
    line = ["bench", "latency", "--device", "cuda", "--way", "rtmlib", "--threads", "2"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 1
    assert "--way, --threads: on the CPU only" in result.output


def test_options_of_a_video_that_is_not_there_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["bench", "tracking", "-m", "garment-landmarks-fast", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "the VIDEO's" in result.output
