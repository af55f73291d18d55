"""Preparing a source once: the same samples come back, what is left out is named, nothing is left half done."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from zojax.data.audio.prepared import Skipped, SpeechBuilder, load
from zojax.data.audio.sources import an4, manifests
from zojax.data.audio.waves import read_wave


@dataclasses.dataclass
class Made:
    """A source of given utterances."""

    items: dict
    name: str = "made"
    reads: int = 0

    @property
    def splits(self):
        return tuple(self.items)

    def fingerprint(self):
        return self.name

    def utterances(self, split):
        self.reads += 1
        for item in self.items[split]:
            if isinstance(item, Exception):
                raise item
            yield item


def utterance(name, length=50, text="go"):
    samples = np.random.default_rng(length).integers(-32768, 32768, length).astype(np.int16)
    return {"id": name, "samples": samples, "text": text, "speaker": "s"}


BAD = Skipped("b", "b.wav: no such file")


def test_utterances_come_back_in_order_and_by_random_access(tmp_path):
    items = [utterance(f"\u6771 {i}", 1 + 7 * i, f"cr\u00e8me {i}\n") for i in range(40)]
    source = Made({"train": items, "dev": [utterance("d")]})
    found = load(source, "train", data_dir=tmp_path)
    assert len(found) == 40
    for item, back in zip(items, found, strict=True):
        np.testing.assert_array_equal(back["samples"], item["samples"], strict=True)
        assert {**back, "samples": None} == {**item, "samples": None}
    assert found.ids == [item["id"] for item in items]
    assert found.texts == [item["text"] for item in items]
    assert found.lengths.tolist() == [len(item["samples"]) for item in items]
    assert found.speakers == ["s"] * 40
    assert found[-1]["id"] == items[-1]["id"]
    assert [u["id"] for u in found[3:9:2]] == [items[i]["id"] for i in (3, 5, 7)]
    for index in (40, -41):
        with pytest.raises(IndexError):
            found[index]
    # several splits in the order named, and no second decoding
    for split, ids in (("dev+train", ["d", *found.ids]), ("train+dev", [*found.ids, "d"])):
        both = load(source, split, data_dir=tmp_path)
        assert [u["id"] for u in both] == both.ids == ids
    assert source.reads == 2
    assert [path.name for path in tmp_path.iterdir()] == ["speech_builder"]


def test_what_is_left_out_is_counted_and_named_at_every_load(tmp_path):
    bad = [Skipped(f"b{i}", f"b{i}.wav: no such file") for i in range(12)]
    source = Made({"train": [bad[0], utterance("a"), *bad[1:], utterance("c")], "dev": [utterance("d")]})
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"12 of 14 utterances of 'train' .* left out: b0: b0\.wav: no such file;"):
            found = load(source, "train", data_dir=tmp_path)
        assert found.ids == ["a", "c"]
        assert [u["id"] for u in found] == ["a", "c"]
        assert found.skipped == tuple(bad)
    with pytest.warns(UserWarning, match="and 2 more"):
        load(source, "train", data_dir=tmp_path)


@pytest.mark.filterwarnings("error")
def test_no_warning_without_a_reason(tmp_path):
    assert load(Made({"train": [BAD, utterance("a")], "dev": [utterance("d")]}), "dev", data_dir=tmp_path).skipped == ()


def test_a_split_of_nothing_but_faults_is_an_error_and_leaves_nothing(tmp_path):
    source = Made({"train": [utterance("a")], "dev": [BAD]})
    with pytest.raises(ValueError, match=r"1 of 1 utterances of 'dev' .*: b: b\.wav: no such file"):
        load(source, "train", data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["speech_builder"]
    assert not list((tmp_path / "speech_builder").rglob("*.array_record*"))
    # once it is mended, it is prepared
    assert len(load(Made({"dev": [utterance("a")]}), "dev", data_dir=tmp_path)) == 1


def test_another_failure_passes_through_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="no space left"):
        load(Made({"dev": [utterance("a"), OSError("no space left")]}), "dev", data_dir=tmp_path)
    assert not list((tmp_path / "speech_builder").rglob("*.array_record*"))
    assert [path.name for path in tmp_path.iterdir()] == ["speech_builder"]


def test_splits_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"split 'test' does not exist; there are \['dev'\]"):
        load(Made({"dev": [utterance("a")]}), "dev+test", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_process_is_first(tmp_path, monkeypatch):
    source, prepare, entered = Made({"dev": [utterance("a")]}), SpeechBuilder.download_and_prepare, []

    def overtaken(self, *args, **kwargs):
        if not entered:
            entered.append(True)
            load(source, "dev", data_dir=tmp_path)  # the other one, from start to end
        prepare(self, *args, **kwargs)

    monkeypatch.setattr(SpeechBuilder, "download_and_prepare", overtaken)
    assert load(source, "dev", data_dir=tmp_path).ids == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["speech_builder"]


def test_the_environment_names_the_cache_and_tensorflow_stays_out(tmp_path):
    program = (
        "import sys\n"
        "from zojax.data.audio.prepared import load\n"
        "from tests.data.audio.test_prepared import Made, utterance\n"
        "found = load(Made({'dev': [utterance('a')]}), 'dev')\n"
        "assert len(found[0]['samples']) == 50\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    environment = {"ZOJAX_CACHE": str(tmp_path), "PATH": "", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    assert (tmp_path / "speech_builder" / "made").is_dir()


def test_real_recordings(tmp_path, zojax_data):
    corpus = an4(zojax_data / "speech" / "an4")
    few = {split: recordings[:3] for split, recordings in corpus.files.items()}
    found = load(dataclasses.replace(corpus, files=few), "test", data_dir=tmp_path)
    assert (found.ids[0], found.texts[0], found.speakers[0]) == ("an406-fcaw-b", "RUBOUT G M E F THREE NINE", "fcaw")
    np.testing.assert_array_equal(found[2]["samples"], read_wave(few["test"][2].path), strict=True)
    folder = zojax_data / "speech" / "librispeech_other_100"
    other = manifests({"test": folder / "transcripts.tsv"})
    assert len(other.files["test"]) == 100
    assert other.files["test"][0].id == "1688-142285-0000"
    assert len(read_wave(other.files["test"][0].path)) == 15 * 16000
