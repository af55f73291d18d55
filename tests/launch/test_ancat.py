"""ANCAT end to end: from a config to the evaluation, whole and in streams, with the latency of its frames."""

import copy
import json
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from launch import eval as eval_program
from launch.common import schema
from launch.common.build import build
from launch.speech import latency, recipe, recogniser
from models.transducer.lookahead import LookAheadLoss
from models.transducer.model import transducer
from tests.launch.test_speech import TONES, fields, write_tones  # noqa: F401 (a fixture)
from zojax.train import checkpoint


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A few tones of one length, so that all batches have one shape; `fields` reads this one here."""
    folder, rng = tmp_path_factory.mktemp("tones_ahead"), np.random.default_rng(0)
    number = 0
    for split, count in (("train", 8), ("dev", 2), ("test", 3)):
        rows = ["path\ttext"]
        for _ in range(count):
            text = "".join(rng.choice(list(TONES), 3))
            write_tones(folder / f"{number}.wav", text, number)
            rows.append(f"{number}.wav\t{text}")
            number += 1
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def config_of(fields, **changes) -> Any:  # noqa: F811
    found = copy.deepcopy(fields)
    found["speech"] |= {"encoder": "ancat", "layers": 2, "width": 8, "channels": (2,), "kernel": 3, "left": 4}
    found["speech"] |= {"lookahead": 3, "latency_weight": 0.1, "compute_weight": 0.01, "speeds": (100,), "anneal": 3}
    found["speech"] |= changes
    return ml_collections.ConfigDict(found)


@pytest.fixture(scope="module")
def made(fields, tmp_path_factory):  # noqa: F811
    """The folder of a run of random weights, whose frames look as far as they like, and its task."""
    folder, config = tmp_path_factory.mktemp("ancat"), config_of(fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOJAX_CACHE", str(tmp_path_factory.getbasetemp() / "zojax_cache"))
        run = build(config, splits=("test",))
        recipe.save_units(config, folder)
    schema.save(folder, config)
    span = run.params["encoder"]["blocks"]["stacked"]["attention"]["span"]
    rng = np.random.default_rng(0)
    span["kernel"] = jnp.asarray(rng.normal(size=span["kernel"].shape), jnp.float32)
    run.params["joiner"]["output"]["bias"] = jnp.array([1.0, 0, 0, 0])  # blanks, and here and there a letter
    checkpoint.save(folder / "base", run.params, {"step": 0})
    return folder, run.task


def test_eval_says_the_latency_and_streams_are_the_whole(made, capsys):
    folder, task = made
    assert task.look_ahead == LookAheadLoss(kind="path", latency=0.1, compute=0.01, warmup=3)
    assert eval_program.main(["eval", f"--workdir={folder}", "--weights=base", "--beam=0"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for column in ("WER", "latency", "95th", "frame", "after end"):
        assert column in printed[1]
    whole, stream = (json.loads(line) for line in (folder / "recognised_test_base.jsonl").read_text().splitlines())
    assert (whole["mode"], stream["mode"]) == ("whole", "stream")
    heard = [json.loads(line)["greedy stream"] for line in (folder / "heard_test_base.jsonl").read_text().splitlines()]
    assert any(heard)  # that it is the text of the whole utterance is checked by the program
    for record in (whole, stream):
        assert record["latency_ms"] == pytest.approx(40 * record["latency"], rel=1e-5)  # that of the task's metrics
        assert record["latency_ms"] < record["latency_95_ms"] <= 40 * 2 * 3
    # A frame comes out with the piece of 160 ms that holds the last that it needs, or at the end.
    assert stream["frame"] > stream["latency_ms"] / 1000


def test_other_encoders_wait_for_what_they_are_made_for(fields):  # noqa: F811
    batch = {"frame_lengths": np.array([43, 20])}
    wanted = {
        "causal": ({"chunk": 1}, [0] * 10),
        "ahead": ({"chunk": 1, "lookahead": 2}, [4, 4, 4, 4, 4, 4, 3, 2, 1, 0]),
        "chunked": ({"chunk": 4}, [3, 2, 1, 0, 3, 2, 1, 0, 1, 0]),
        "full": ({"chunk": 0}, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    }
    for changes, frames in wanted.values():
        settings = {"encoder": "conformer", "lookahead": 0, "latency_weight": 0.0, "compute_weight": 0.0, "anneal": 0}
        config = config_of(fields, **settings | changes)
        schema.check(config)
        task = recipe.make_task(config, 5)
        found = recogniser.Recogniser(config, task, None, None, recipe.filter_bank(config))
        late, short = latency.frame_latencies(found, batch)
        # 43 frames of 10 ms are 10 of 40, and 30 ms over, which an encoder that waits for the end or beyond hears.
        np.testing.assert_allclose(np.ceil(late / 0.04 - 0.8), frames)
        assert len(short) == 5
        assert short[-1] == 0
        assert transducer(task.config).encoder.stride == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookahead": 0}, r"speech\.lookahead is 0; with ancat it must be 1 or more"),
        ({"encoder": "conformer", "chunk": 2}, r"speech\.lookahead is 3; with encoder conformer and chunk 2"),
        ({"encoder": "conformer", "chunk": 1}, r"speech\.latency_weight is 0\.1; with encoder conformer it must be 0"),
        ({"latency_kind": "most"}, r"speech\.latency_kind is 'most'"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        schema.check(config_of(fields, **changes))
