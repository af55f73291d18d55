"""launch.compare_speech: what it reads, and that its interval is that of a bootstrap."""

import json

import numpy as np
import pytest

from launch import compare_speech
from launch.compare_speech import Counts, difference


def write(folder, heard, said="a b c d"):
    folder.mkdir()
    rows = [{"id": i, "said": said, "greedy whole": text} for i, text in enumerate(heard)]
    (folder / "heard_test_best.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_interval_of_a_mean_difference():
    # Independent errors, one word an utterance: the difference of two rates is nearly normal.
    rng = np.random.default_rng(1)
    words = np.ones(400, int)
    a, b = (Counts(rng.binomial(1, rate, (1, 400)), words) for rate in (0.3, 0.3))
    found = difference(a, b)
    deviation = float(np.std(a.errors[0] - b.errors[0])) / 20
    assert found.mean == pytest.approx(np.mean(a.errors[0] - b.errors[0]))
    # 10,000 draws give a quantile to about 2 % of the deviation; errors are whole numbers: half a word of 400 more.
    assert found.low == pytest.approx(found.mean - 1.96 * deviation, abs=0.1 * deviation)
    assert found.high == pytest.approx(found.mean + 1.96 * deviation, abs=0.1 * deviation)


def test_pairs_make_the_interval_narrow_and_seeds_make_it_wide():
    rng = np.random.default_rng(2)
    hard = rng.binomial(4, 0.3, 200)
    words = np.full(200, 5)
    base = Counts(hard[None], words)
    always = difference(Counts(hard[None] + 1, words), base)  # worse by one word everywhere
    assert (always.low, always.high) == pytest.approx((0.2, 0.2))
    assert not always.is_tie
    # Three seeds of which one is bad: two sets of the same kind may differ by chance.
    uneven = Counts(np.stack([hard, hard, hard + 1]), words)
    assert difference(uneven, base).is_tie


def test_the_program(tmp_path, capsys):
    good = [write(tmp_path / f"good{i}", ["a b c d"] * 30) for i in range(2)]
    bad = write(tmp_path / "bad", ["a b c", "a b c d"] * 15)
    assert compare_speech.main(["compare", f"--runs={','.join(good)}", f"--baseline={bad}"]) == 0
    runs, baseline, found = capsys.readouterr().out.splitlines()
    assert runs == "runs      0.00% mean of 2: 0.00%, 0.00%"
    assert baseline == "baseline  12.50% mean of 1: 12.50%"
    assert found.startswith("difference -12.50%, 95 % -")
    assert found.endswith(": fewer errors")


def test_utterances_by_how_the_beam_is_steered(tmp_path, capsys):
    folders = [write(tmp_path / name, texts) for name, texts in (("one", ["a b", "a b c d"]), ("other", ["a b", "a"]))]
    for folder in folders:
        path = tmp_path / folder / "heard_test_best.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        steered = zip(rows, ("right", "wrong"), strict=True)
        path.write_text("".join(json.dumps(row | {"beam": kind}) + "\n" for row, kind in steered))
    arguments = [f"--runs={folders[0]}", f"--baseline={folders[1]}"]
    for kind, rates in (("right", ("50.00%", "50.00%")), ("wrong", ("0.00%", "75.00%"))):
        assert compare_speech.main(["compare", *arguments, f"--beam={kind}"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[:2]] == list(rates)
    plain = write(tmp_path / "plain", ["a b c d"])
    assert compare_speech.main(["compare", f"--runs={plain}", f"--baseline={plain}", "--beam=wrong"]) == 2
    assert "no utterance whose beam is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runs", "search", "message"),
    [
        ("nowhere", "greedy whole", "launch.eval --workdir"),
        ("", "greedy whole", "need a run each"),
        ("good", "beam 4 stream", "no 'beam 4 stream'; there are greedy whole"),
        ("good,other", "greedy whole", "other utterances"),
        ("other", "greedy whole", "not heard the same"),
    ],
)
def test_wrong_requests(runs, search, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good", ["a b c d"] * 3)
    write(tmp_path / "other", ["a b"] * 3, said="a b")
    assert compare_speech.main(["compare", f"--runs={runs}", "--baseline=good", f"--search={search}"]) == 2
    assert message in capsys.readouterr().err
