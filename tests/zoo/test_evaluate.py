"""The figures of `evaluate.py` on made-up answers, and the whole program with a made-up host."""

import json
import stat
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import evaluate

LLM = {"name": "llm.a", "split": "public", "workload": "llm", "phases": ["llm.prefill", "llm.decode"]}
GNN = {"name": "gnn.b", "split": "public", "workload": "gnn", "phases": ["gnn.message_passing"]}


def answer(workload, *ops):
    """`ops`: (what was said, the mark)."""
    return {
        "file": "x.json",
        "workload": {"label": workload, "confidence": 0.8},
        "ops": [{"op": "aten::mm", "phase": said, "mark": mark, "confidence": 0.5} for said, mark in ops],
    }


@pytest.mark.parametrize(
    ("labels", "given", "workload", "phase", "equal"),
    [
        (LLM, answer("llm", ("llm.prefill", "llm.prefill"), ("llm.decode", "llm.decode")), True, 1.0, True),
        # What has no mark counts for the set of phases only.
        (LLM, answer("llm", ("llm.prefill", "llm.prefill"), ("llm.decode", None)), True, 1.0, True),
        (LLM, answer("llm", ("llm.prefill", "llm.prefill"), ("llm.prefill", "llm.decode")), True, 0.5, False),
        (LLM, answer("seq2seq", (None, "llm.prefill"), ("other.forward", "llm.decode")), False, 0.0, False),
        (LLM, answer(None, (None, "llm.prefill")), False, 0.0, False),
        (LLM, None, False, 0.0, False),
    ],
)
def test_judge(labels, given, workload, phase, equal):
    verdict = evaluate.judge(labels, given)
    assert (verdict.workload_right, verdict.phase_accuracy, verdict.phases_equal) == (workload, phase, equal)


def test_long_programs_count_as_much_as_short_ones():
    many = [("llm.prefill", "llm.prefill")] * 99 + [("llm.decode", "llm.decode")]
    score = evaluate.Score(
        [
            evaluate.judge(LLM, answer("llm", *many)),
            evaluate.judge(GNN, answer("other", ("other.forward", "gnn.message_passing"))),
        ]
    )
    assert score.workload() == 0.5
    assert score.workload("gnn") == 0.0
    assert score.phase() == 0.5
    assert score.one_phase("llm.decode") == 1.0
    assert score.one_phase("gnn.message_passing") == 0.0
    assert score.sets_equal() == 0.5
    assert score.confusion() == {"llm": {"llm": 1}, "gnn": {"other": 1}}


def test_report_names_public_cases_and_hides_blind_ones():
    wrong = evaluate.Score([evaluate.judge(GNN, answer("other"))])
    assert "`gnn.b`: gnn, said other (0.80)" in evaluate.report({"as they are": wrong}, "public")
    blind = evaluate.report({"as they are": wrong}, "blind")
    assert "gnn.b" not in blind
    assert "gnn.b" in evaluate.report({"as they are": wrong}, "blind", name_blind=True)


def test_table_is_aligned():
    lines = evaluate.table(["a", "bcd"], [["long name", "1"], ["x", "100.0 %"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


HOST = """#!{python}
import json, sys
files = [a for a in sys.argv[2:] if a.endswith(".json")]
assert sys.argv[1] == "graph" and "--strip-marks" in sys.argv and "--print" in sys.argv
for file in files:
    label = "other" if "--scramble-names" in sys.argv and "gnn" in file else json.load(open(file))["truth"]
    if "missing" in file:
        continue
    ops = [{{"op": "aten::mm", "phase": p, "mark": p, "confidence": 1.0}} for p in json.load(open(file))["phases"]]
    print(json.dumps({{"file": file, "workload": {{"label": label, "confidence": 0.9}}, "ops": ops}}))
"""


@pytest.fixture
def recorded(tmp_path):
    host = tmp_path / "host"
    host.write_text(HOST.format(python=sys.executable))
    host.chmod(host.stat().st_mode | stat.S_IXUSR)
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for labels in (LLM, GNN, {**GNN, "name": "gnn.missing", "split": "blind"}):
        (graphs / f"{labels['name']}.labels.json").write_text(json.dumps(labels))
        graph = {"truth": labels["workload"], "phases": labels["phases"]}
        (graphs / f"{labels['name']}.json").write_text(json.dumps(graph))
    return host, graphs


def test_whole_program(recorded, tmp_path, capsys):
    host, graphs = recorded
    common = [str(graphs), "--host", str(host), "--plugins", "/nowhere"]
    wrote = tmp_path / "zoo.md"
    options = ["--split", "public", "--scramble", "1", "--permute", "2", "--write", str(wrote), "--workload-min", "95"]
    assert evaluate.main([*common, *options]) == 0
    text = wrote.read_text()
    assert "## public: 2 cases" in text
    assert [line for line in text.splitlines() if line.startswith("| all")][0].split("|")[3:6] == [
        "     100.0 % ",
        "    50.0 % ",
        "  100.0 % ",
    ]
    # A graph without an answer is a wrong one.
    assert evaluate.main([*common, "--split", "blind", "--workload-min", "95"]) == 1
    captured = capsys.readouterr()
    assert "no answer about gnn.missing.json" in captured.err
    assert "gnn.missing" not in captured.out


def test_graphs_recorded_before_their_labels_changed_are_named(recorded, capsys):
    host, graphs = recorded
    (graphs / "gnn.b.json").write_text(json.dumps({"truth": "gnn", "phases": ["other.forward"]}))
    evaluate.main([str(graphs), "--host", str(host), "--split", "public"])
    assert "gnn.b: its marks are not those of its labels" in capsys.readouterr().err


def test_nothing_recorded(tmp_path, capsys):
    assert evaluate.main([str(tmp_path)]) == 2
    assert "holds no recorded cases" in capsys.readouterr().err
