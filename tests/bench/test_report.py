"""The results file, and the arithmetic over its rows."""

from __future__ import annotations

import json

import pytest

from vision_ssm.bench.report import FORMAT, Measured, Report, read_report, slopes
from vision_ssm.bench.settings import Settings
from vision_ssm.errors import DataError


def report() -> Report:
    settings = Settings(("vim_nano", "test_vit"), ((32, 32), (32, 64)), (1,), note="a test")
    made = Report.begin(settings, 64)
    for group in settings.groups():
        made.measured += [Measured(case, samples=[0.1, 0.4, 0.2]) for case in group]
    made.measured[1].memory = {"peak_bytes": 300}
    made.measured[0].memory = {"peak_bytes": 200}
    made.end()
    return made


def test_what_is_written_is_what_is_read(tmp_path):
    made = report()
    made.save(tmp_path / "new" / "r.json")
    found = read_report(tmp_path / "new" / "r.json")
    assert found == json.loads(json.dumps(made.to_dict()))
    assert found["format"] == FORMAT
    assert found["versions"]["torch"]
    assert found["machine"]["processor"]
    assert found["circumstances"]["note"] == "a test"
    assert found["circumstances"]["started"] <= found["circumstances"]["ended"]
    assert found["rows"][0]["seconds"] == pytest.approx(
        {"median": 0.2, "lower_quartile": 0.15, "upper_quartile": 0.3, "min": 0.1, "max": 0.4}
    )
    assert [row["memory_ratio"] for row in found["rows"]] == [1, 1.5, None, None]


def test_ratios_refer_to_the_first_model_of_the_same_group():
    made = report()
    made.measured[2].samples = [0.05]
    assert [row["time_ratio"] for row in made.to_dict()["rows"]] == pytest.approx([1, 1, 1, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "cannot read results"), ("[]", "was not written by"), ("{}", "was not written by")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_report(path)


def test_an_unwritable_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        report().save(tmp_path / "file" / "r.json")


def test_slopes_of_power_laws():
    def row(model: str, side: int, power: float) -> dict[str, object]:
        shape = {"model": model, "batch": 1, "dtype": "float32", "threads": 1, "height": side, "width": side}
        return {**shape, "seconds": {"median": 1e-6 * (side * side) ** power}}

    rows = [row(model, side, power) for side in (32, 64, 256) for model, power in (("a", 1.0), ("b", 1.7))]
    rows += [row("c", 32, 1), row("c", 64, 1), {**row("c", 128, 1), "seconds": None}]
    found = slopes(rows)
    assert [(s["model"], s["sizes"]) for s in found] == [("a", 3), ("b", 3)]
    assert [s["slope"] for s in found] == pytest.approx([1, 1.7])
