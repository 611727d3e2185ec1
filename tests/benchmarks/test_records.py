import json
import re
import subprocess
from pathlib import Path
from typing import Any

import example_records
import pytest
from typer.testing import CliRunner

from edgepose.benchmarks import cli, gpu_cli, gpu_latency, plots, records, robustness, startup
from edgepose.benchmarks.records import Record, Row, cpu_facts, make_record
from edgepose.cli import app
from edgepose.errors import InputError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SCHEMA = json.loads((RESULTS / "schema.json").read_text())
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "null": type(None),
}  # fmt: skip
WORDS = {
    "$schema", "title", "description", "type", "required", "properties", "additionalProperties", "items", "const",
    "minLength", "minProperties",
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], where: str = "it") -> list[str]:
    """What contradicts a JSON Schema of the few words that ours uses."""
    assert set(schema) <= WORDS, f"the schema uses a word that this test does not know: {set(schema) - WORDS}"
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", [])
    if kinds and not any(isinstance(value, TYPES[kind]) and not isinstance(value, bool) for kind in kinds):
        return [f"{where} is no {kinds}"]
    found = [f"{where} is not {schema['const']}"] if "const" in schema and value != schema["const"] else []
    if isinstance(value, str) and len(value) < schema.get("minLength", 0):
        found.append(f"{where} is empty")
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{number}]")
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where} lacks {key}" for key in schema.get("required", []) if key not in value]
        found += [f"{where} is empty"] if len(value) < schema.get("minProperties", 0) else []
        for key, item in value.items():
            if key in known:
                found += problems(item, known[key], f"{where}.{key}")
            elif others is False:
                found.append(f"{where} has {key}")
            elif isinstance(others, dict):
                found += problems(item, others, f"{where}.{key}")
    return found


@pytest.mark.parametrize("path", sorted(set(RESULTS.glob("*.json")) - {RESULTS / "schema.json"}), ids=lambda p: p.name)
def test_every_recorded_file_obeys_the_schema_and_is_read(path):
    assert problems(json.loads(path.read_text()), SCHEMA) == []
    record = Record.read(path)
    assert path.name == record.file_name
    assert record.rows


@pytest.mark.parametrize("name", sorted(example_records.ALL))
def test_round_trip_through_a_file_that_obeys_the_schema(name, tmp_path):
    record = example_records.ALL[name]()
    path = record.save(tmp_path)
    assert problems(json.loads(path.read_text()), SCHEMA) == []
    again = Record.read(path)
    assert (again.suite, again.device, again.notes) == (record.suite, record.device, record.notes)
    assert again.environment == record.environment
    assert [(dict(row.labels), row.unit) for row in again.rows] == [(dict(row.labels), row.unit) for row in record.rows]
    for ours, theirs in zip(record.rows, again.rows, strict=True):
        # five digits are kept: half of the last one of 1.0000 is 5e-5 of it
        assert theirs.values == pytest.approx(ours.values, rel=5.1e-5, abs=0)
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_record_of_this_machine_obeys_the_schema(tmp_path):
    record = make_record("latency", [Row({"way": "edgepose"}, "ms", {"p50": 1.0, "runs": 3.0})], notes=("a note",))
    assert problems(json.loads(record.save(tmp_path).read_text()), SCHEMA) == []
    assert record.device == cpu_facts()["name"]
    assert record.environment["versions"]["numpy"]
    assert re.fullmatch(r"[0-9a-f]{12}\+?", record.environment["commit"] or "0" * 12)
    on_gpu = make_record("latency", [], gpu={"name": "Example GPU", "driver": None})
    assert on_gpu.device == "Example GPU"
    assert problems(json.loads(on_gpu.save(tmp_path).read_text()), SCHEMA) == []


def test_the_command_tells_no_path_of_this_machine(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/somebody/bin/edgepose", "bench", "accuracy", "/home/somebody/val set.json"])
    command = make_record("accuracy", []).environment["command"]
    assert command == "edgepose bench accuracy 'val set.json'"


def test_one_row_a_line_so_that_differences_read_well(tmp_path):
    record = example_records.throughput()
    lines = record.save(tmp_path).read_text().splitlines()
    assert sum('"labels"' in line for line in lines) == len(record.rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_no_number_is_not_saved(value, tmp_path):
    with pytest.raises(InputError, match=r"p95 of .*edgepose.* must be a finite number"):
        example_records.record("latency", [Row({"way": "edgepose"}, "ms", {"p95": value})]).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        example_records.throughput().save(tmp_path / "file")


BREAKS: list[tuple[Any, str]] = [
    (lambda content: content.pop("device"), "expected an object with device, "),
    (lambda content: content.update(more=1), "expected an object with"),
    (lambda content: content.update(schema=0), "schema 0: run the suite again"),
    (lambda content: content.update(suite=""), "suite must be a text"),
    (lambda content: content.update(environment=[]), "environment must be an object"),
    (lambda content: content.update(notes=[1]), "notes must be a list of texts"),
    (lambda content: content.update(rows={}), "rows must be a list"),
    (lambda content: content["rows"][1].pop("unit"), "row 1 must have labels, unit and values"),
    (lambda content: content["rows"][1].update(unit=3), "the unit of row 1 must be a text"),
    (lambda content: content["rows"][1].update(values={}), "row 1 must have labels"),
    (lambda content: content["rows"][1]["values"].update(p50="3"), "values that are numbers"),
    (lambda content: content["rows"][1]["values"].update(p50=True), "values that are numbers"),
    (lambda content: content["rows"][1]["labels"].update(way=None), "labels that are texts or numbers"),
]


@pytest.mark.parametrize(("damage", "words"), BREAKS)
def test_a_broken_file_is_told_with_what_is_wrong_and_the_schema_agrees(damage, words, tmp_path):
    path = example_records.throughput().save(tmp_path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    assert problems(content, SCHEMA)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        Record.read(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00"])
def test_what_is_no_result_at_all_is_refused(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        Record.read(path)
    with pytest.raises(InputError, match="cannot be read"):
        Record.read(tmp_path / "absent.json")


def test_value_wants_exactly_one_row():
    record = example_records.throughput()
    at = {"way": "edgepose", "arrangement": "one after the other"}
    assert record.value(**at) == 21.0
    assert record.value("low", **at) == pytest.approx(20.79)  # exact but for the product's rounding
    assert len(record.find(way="edgepose")) == 2
    with pytest.raises(InputError, match="got 2 rows"):
        record.value(way="edgepose")
    with pytest.raises(InputError, match="got 0 rows"):
        record.value(way="nobody")
    with pytest.raises(InputError, match="has 'p42', got one with p50"):
        record.value("p42", **at)


def test_file_names_are_of_suite_and_device():
    assert example_records.record("data-loading", []).file_name == "data-loading--example-cpu-9000.json"
    assert SCHEMA["properties"]["schema"]["const"] == records.SCHEMA_VERSION


def test_commit_and_load_are_those_of_the_beginning(monkeypatch):
    loads = iter([(0.25, 0.5, 0.5), (9.0, 9.0, 9.0), (9.0, 9.0, 9.0)])
    commits = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(records.os, "getloadavg", lambda: next(loads), raising=False)
    monkeypatch.setattr(records, "_git_commit", lambda: next(commits))
    monkeypatch.setattr(records, "_begun", [])
    records.begin()
    first, second = records.make_record("latency", []), records.make_record("latency", [])
    assert first.environment["load_average"] == [0.25, 0.5, 0.5]
    assert first.notes == ()
    assert second.environment["commit"] == "aaaa"
    assert second.notes == ("the checkout changed during the run: aaaa at its start, bbbb at its end",)


def test_a_command_begins_its_record_before_it_measures(monkeypatch):
    monkeypatch.setattr(records, "_begun", [])
    with cli.turns("latency"):
        assert len(records._begun) == 1
        monkeypatch.setattr(records, "_git_commit", lambda: "later")
        record = records.make_record("latency", [])
    assert record.environment["commit"] == records._begun[0].commit
    assert [note.startswith("the checkout changed during the run") for note in record.notes] == [True]


@pytest.mark.parametrize(
    ("path", "sign"),
    [
        ("benchmarks/models/weights.npz", "+"),
        ("benchmarks/peers/torch.py", "+"),
        ("edgepose/data.json", "+"),
        ("benchmarks/results/record.json", ""),
        ("docs/page.md", ""),
    ],
)
def test_the_commit_has_a_plus_where_what_runs_has_changed(path, sign, tmp_path, monkeypatch):
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text("as committed")
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b.example",
        "-c",
        "commit.gpgsign=false",
    ]
    for line in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *line], check=True)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    commit = records._git_commit()
    assert re.fullmatch(r"[0-9a-f]{12}", commit)
    file.write_text("changed")
    assert records._git_commit() == commit + sign


def test_a_record_is_saved_before_its_plots_and_table_can_fail(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no")

    record = example_records.throughput()
    monkeypatch.setattr(plots, "plot", fail)
    with cli.console.capture() as told, pytest.raises(RuntimeError):
        cli.keep(record, tmp_path)
    assert Record.read(tmp_path / record.file_name).suite == "throughput"
    assert record.file_name in told.get()
    monkeypatch.setattr(plots, "plot", lambda *_: [])
    monkeypatch.setattr(startup, "run", lambda **_: example_records.record("startup", []))
    monkeypatch.setattr(startup, "print_table", fail)
    result = CliRunner().invoke(app, ["bench", "startup", "-o", str(tmp_path)])
    assert isinstance(result.exception, RuntimeError)
    assert list(tmp_path.glob("startup--*.json"))


@pytest.mark.parametrize("module", [startup, robustness])
def test_a_model_named_twice_is_measured_once_in_order(module, monkeypatch, tmp_path):
    asked = []

    def run(*_, models, **__):
        asked.extend(models)
        return example_records.record("startup", [])

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "print_table", lambda *_: None)
    name = module.__name__.rpartition(".")[2]
    labels = ["labels.json"] if module is robustness else []
    line = ["bench", name, *labels, "-m", "b", "-m", "a", "-m", "b", "-o", str(tmp_path)]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert asked == ["b", "a"]


def test_a_model_named_twice_is_measured_once_on_a_gpu(monkeypatch, tmp_path):
    asked = {}

    def run(models, **options):
        asked.update(options, models=models)
        return example_records.record("latency", [])

    monkeypatch.setattr(gpu_cli, "check_gpu", lambda: None)
    monkeypatch.setattr("edgepose.benchmarks.bench_models.open_model", lambda name: name)
    monkeypatch.setattr(gpu_latency, "run", run)
    monkeypatch.setattr(gpu_latency, "print_table", lambda *_: None)
    monkeypatch.setattr(plots, "plot", lambda *_: [])
    gpu_cli.run_on_gpu("latency", tmp_path, models=["b", "a", "b"], boxes=[8, 1, 8])
    assert (asked["models"], asked["boxes"]) == (["b", "a"], (8, 1))
