"""launch.report: groups, curves, tables and pages of runs made up here."""

import base64
import json
import re
import statistics

import numpy as np
import pytest

from launch import report

PNG = b"\x89PNG\r\n"


def make_run(folder, *, seed=0, name="spsa", rate=1e-3, accuracies=(0.5, 0.6, 0.7), test=None, source="reviews"):
    folder.mkdir(parents=True)
    config = {
        "seed": seed,
        "trainable": [".*"],
        "data": {"source": source},
        "method": {"name": name, "num_samples": 1},
        "optimizer": {"name": "sgd", "learning_rate": rate},
    }
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": 0, "split": "dev", "forwards": 0, "accuracy": accuracies[0], "loss": 0.7}]
    for i, accuracy in enumerate(accuracies[1:], 1):
        lines.append({"step": 10 * i, "forwards": 20 * i, "loss": 1 / i, "projected_rms": 0.1})
        lines.append({"step": 10 * i, "split": "dev", "forwards": 20 * i, "accuracy": accuracy, "loss": 0.6})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if test is not None:
        line = {"split": "test", "weights": "best", "step": 20, "accuracy": test}
        (folder / "eval.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def arguments(out, *runs):
    return [*map(str, runs), "--out", str(out)]


def test_writes_a_page_a_table_and_figures(tmp_path, capsys):
    runs = [
        make_run(tmp_path / "a0", seed=0, accuracies=(0.5, 0.6, 0.7), test=0.62),
        make_run(tmp_path / "a1", seed=1, accuracies=(0.5, 0.9, 0.8), test=0.66),
        make_run(tmp_path / "b0", name="first_order", accuracies=(0.5, 0.55)),
    ]
    out = tmp_path / "deep" / "report"
    assert report.main(arguments(out, *runs)) == 0

    text = (out / "report.md").read_text()
    assert capsys.readouterr().out == text
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:4]]
    dev = f"0.8000 ± {statistics.stdev([0.7, 0.9]):.4f}"
    test = f"0.6400 ± {statistics.stdev([0.62, 0.66]):.4f}"
    assert cells[0] == ["spsa", "2", "40", "0.001", dev, test, "-"]
    assert cells[1] == ["first_order", "1", "20", "0.001", "0.5500", "-", "-"]

    page = (out / "report.html").read_text()
    embedded = [base64.b64decode(x) for x in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert embedded == [(out / name).read_bytes() for name in ("dev_accuracy.png", "train_loss.png")]
    assert all(png.startswith(PNG) for png in embedded)
    # One file: nothing is loaded from elsewhere.
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_the_same_runs_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "run")
    for out in ("x", "y"):
        assert report.main(arguments(tmp_path / out, run)) == 0
    for name in ("report.html", "report.md", "dev_accuracy.png", "train_loss.png"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()


def test_text_of_runs_is_escaped(tmp_path):
    nasty = "<script>alert('x')</script> $\\frac{ | & `"
    run = make_run(tmp_path / "r<b>n", name=nasty, source='"><img src=x>')
    assert report.main(arguments(tmp_path / "out", run)) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;" in page
    assert "&quot;&gt;&lt;img" in page
    for raw in ("<script", "<img src=x", "r<b>n"):
        assert raw not in page
    row = (tmp_path / "out" / "report.md").read_text().splitlines()[2]
    assert "<script" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == len(report.HEADINGS) + 1


def test_groups_differ_in_more_than_the_seed(tmp_path):
    runs = [
        make_run(tmp_path / "0", seed=0, rate=1e-3),
        make_run(tmp_path / "1", seed=0, rate=1e-4),
        make_run(tmp_path / "2", seed=7, rate=1e-3),
        make_run(tmp_path / "3", name="fzoo", rate=1e-2),
    ]
    groups = report.group([report.read_run(run) for run in runs])
    assert [group.name for group in groups] == ["spsa, learning_rate 0.001", "spsa, learning_rate 0.0001", "fzoo"]
    assert [[run.seed for run in group.runs] for group in groups] == [[0, 7], [0], [0]]


def test_a_run_given_twice_is_refused(tmp_path):
    run = report.read_run(make_run(tmp_path / "run"))
    with pytest.raises(ValueError, match="same config and the same seed, 0"):
        report.group([run, run])


def test_a_torn_last_line_is_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    whole = report.read_run(run)
    with (run / "metrics.jsonl").open("ab") as file:
        # Cut within a character of two bytes.
        file.write(b'{"step": 30, "split": "dev", "forwards": 60, "accuracy": 1.0, "note": "\xc3')
    np.testing.assert_equal(report.read_run(run), whole)


def test_a_loss_that_was_not_finite_has_no_point(tmp_path):
    run = make_run(tmp_path / "run", accuracies=(0.5, 0.6))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "forwards": 40, "loss": null}\n')
    assert report.read_run(run).train.x.tolist() == [20]
    assert report.read_run(run).forwards == 40


def no_config(run):
    (run / "config.json").unlink()


def no_metrics(run):
    (run / "metrics.jsonl").unlink()


def empty_metrics(run):
    (run / "metrics.jsonl").write_text('{"step": 1')


def damaged_metrics(run):
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')


def metrics_without_objects(run):
    (run / "metrics.jsonl").write_text("3\n")


def damaged_config(run):
    (run / "config.json").write_text("{")


def config_of_a_list(run):
    (run / "config.json").write_text("[]")


def config_without_seed(run):
    (run / "config.json").write_text('{"method": {"name": "spsa"}, "optimizer": {"learning_rate": 1}}')


def damaged_eval(run):
    (run / "eval.jsonl").write_text("Traceback\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, "holds no config.json"),
        (no_metrics, "holds no metrics.jsonl"),
        (empty_metrics, "no whole line"),
        (damaged_metrics, "metrics.jsonl, line 2: not JSON"),
        (metrics_without_objects, "line 1: a JSON object is needed, not '3'"),
        (damaged_config, "config.json is no config"),
        (config_of_a_list, "config.json is no config"),
        (config_without_seed, "lacks seed"),
        (damaged_eval, "eval.jsonl, line 1: not JSON"),
    ],
)
def test_a_wrong_run_is_one_line_and_nothing_is_written(tmp_path, capsys, damage, message):
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad", seed=1)
    damage(bad)
    assert report.main(arguments(tmp_path / "out", good, bad)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(bad) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_out_must_be_a_folder(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert report.main(arguments(run / "config.json", run)) == 2
    assert "is no folder" in capsys.readouterr().err


def test_a_run_without_evaluations_has_no_figure_of_them(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1, "forwards": 2, "loss": 0.5}\n')
    assert report.main(arguments(tmp_path / "out", run)) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.html", "report.md", "train_loss.png"]


def test_a_band_covers_its_seeds():
    first = report.Curve(np.array([0.0, 10.0, 20.0]), np.array([1.0, 3.0, 5.0]))
    second = report.Curve(np.array([0.0, 5.0, 10.0]), np.array([3.0, 2.0, 1.0]))
    x, mean, least, greatest = report.band([first, second])
    assert x.tolist() == [0, 5, 10]  # up to where the shorter ends
    assert mean.tolist() == [2, 2, 2]
    assert least.tolist() == [1, 2, 1]
    assert greatest.tolist() == [3, 2, 3]


def test_many_groups_can_be_drawn():
    curve = report.Curve(np.arange(3.0), np.ones(3))
    assert report.draw([(f"method {i}", [curve]) for i in range(20)], "accuracy").startswith(PNG)
    assert report.draw([("nothing", [report.Curve(np.array([]), np.array([]))])], "accuracy") is None


def test_training_loss_is_a_mean_over_what_came_before(tmp_path):
    run = make_run(tmp_path / "run", accuracies=(0.5,) * 41)
    y = report.read_run(run).train.y
    loss = 1 / np.arange(1, 41)
    # 5 % of 40 lines: two. The tolerance is that of sums in float64.
    np.testing.assert_allclose(y, [loss[0], *(loss[1:] + loss[:-1]) / 2], rtol=1e-12)
