"""launch.latency_curve: seeds together, in the order of latency; what it lacks it names."""

import json

import pytest

from launch import latency_curve


def write(folder, name, seed, wer, latency):
    run = folder / f"{name}_{seed}"
    run.mkdir()
    config = {"seed": seed, "method": {"name": "first_order"}, "optimizer": {"learning_rate": 1e-3}}
    (run / "config.json").write_text(json.dumps(config | {"speech": {"encoder": name}}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "forwards": 3, "loss": 1.0}) + "\n")
    record = {"search": "greedy", "mode": "whole", "wer": wer, "latency_ms": latency, "latency_95_ms": 2 * latency}
    (run / "recognised_test_best.jsonl").write_text(json.dumps(record) + "\n")
    return str(run)


def test_seeds_make_one_point_and_latency_is_the_order(tmp_path, capsys):
    runs = [write(tmp_path, "full", 0, 0.1, 500.0)]
    runs += [write(tmp_path, "ancat", seed, 0.1 + 0.02 * seed, 100.0 + 20 * seed) for seed in range(2)]
    assert latency_curve.main([*runs, f"--out={tmp_path / 'curve.png'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "| first_order, encoder ancat | 2 | 11.00% ± 1.41% | 110 ± 14 ms | 220 ± 28 ms |",
        "| first_order, encoder full | 1 | 10.00% | 500 ms | 1000 ms |",
    ]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=dev"], "recognised_dev_best.jsonl: no such file"),
        (["--search=beam 4 whole"], "no latency of 'beam 4"),
    ],
)
def test_what_is_missing_is_named(tmp_path, capsys, options, message):
    assert latency_curve.main([write(tmp_path, "full", 0, 0.1, 500.0), *options]) == 2
    assert message in capsys.readouterr().err
