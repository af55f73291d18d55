"""Corpora as lists of files: layouts, faults with file and line, splits by speakers."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from zojax.data.audio.prepared import Skipped, Source
from zojax.data.audio.recordings import Recording, Recordings, hold_out
from zojax.data.audio.sources import an4, find_recordings, librispeech, manifests


def sound(path, value, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"format": "NIST", "subtype": "PCM_16"} if path.suffix == ".sph" else {}
    soundfile.write(path, np.full(100, value, np.int16), rate, **options)


def make_an4(root, suffix=".flac", train=("<s> GO ON </s> (a-x-b)", "<s> YES </s> (b-y-b)"), ids=None):
    (root / "etc").mkdir(parents=True)
    ids = ids or ["an4_clstk/x/a-x-b", "an4_clstk/y/b-y-b"]
    (root / "etc/an4_train.fileids").write_text("".join(f"{i}\n" for i in ids))
    (root / "etc/an4_train.transcription").write_text("".join(f"{line}\n" for line in train))
    (root / "etc/an4_test.fileids").write_text("an4test_clstk/z/c-z-b\n")
    (root / "etc/an4_test.transcription").write_text("NO <sil> ++uh++ (c-z-b)\n")
    for value, name in enumerate(["an4_clstk/x/a-x-b", "an4_clstk/y/b-y-b", "an4test_clstk/z/c-z-b"]):
        sound(root / "wav" / f"{name}{suffix}", value)
    return root


@pytest.mark.parametrize("suffix", [".flac", ".wav", ".sph"])
def test_an4_in_every_form_of_its_archives(tmp_path, suffix):
    corpus = an4(make_an4(tmp_path, suffix), dev_size=1)
    assert isinstance(corpus, Source)
    assert corpus.splits == ("train", "dev", "test")
    rows = {r.id: (r.text, r.speaker) for split in corpus.splits for r in corpus.files[split]}
    assert rows == {"a-x-b": ("GO ON", "x"), "b-y-b": ("YES", "y"), "c-z-b": ("NO", "z")}
    utterances = {u["id"]: u for split in corpus.splits for u in corpus.utterances(split)}
    assert {name: u["samples"][0] for name, u in utterances.items()} == {"a-x-b": 0, "b-y-b": 1, "c-z-b": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": ("GO (a-x-b)", "YES (a-x-b)")}, r"train\.transcription, line 2: expected TEXT \(b-y-b\)"),
        ({"train": ("GO (a-x-b)", "YES")}, "line 2"),
        ({"train": ("GO (a-x-b)",)}, "1 lines, but .* has 2"),
        ({"ids": ["an4_clstk/x/a-x-b", "../../b-y-b"]}, r"fileids, line 2: path '\.\./\.\./b-y-b' leads out of"),
    ],
)
def test_faults_of_an4(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        an4(make_an4(tmp_path, **change), dev_size=1)


def test_an4_itself(zojax_data):
    corpus = an4(zojax_data / "speech" / "an4")
    assert {split: len(corpus.files[split]) for split in corpus.splits} == {"train": 848, "dev": 100, "test": 130}
    speakers = {split: {r.speaker for r in corpus.files[split]} for split in corpus.splits}
    assert len(speakers["train"] | speakers["dev"]) == 74
    assert not speakers["train"] & speakers["dev"]
    assert not speakers["test"] & (speakers["train"] | speakers["dev"])
    # Golden: results are chosen on this split.
    assert sorted(speakers["dev"]) == ["fbbh", "fjam", "flmm2", "mcel", "mjdr", "mmaf", "mnjl", "mtje"]
    assert sum(len(r.text.split()) for r in corpus.files["test"]) == 773
    assert all(r.path.is_file() for split in corpus.splits for r in corpus.files[split])


def test_librispeech_folders(tmp_path):
    for subset, name, words in [("dev-clean", "84-121-0000", "GO ON"), ("train-other-500", "7-9-0001", "STOP")]:
        speaker, chapter, _ = name.split("-")
        folder = tmp_path / subset / speaker / chapter
        sound(folder / f"{name}.flac", 5)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text(f"{name} {words}\n")
    (tmp_path / "README").write_text("")
    corpus = find_recordings(tmp_path)
    assert corpus.splits == ("dev_clean", "train_other_500")
    utterance = next(corpus.utterances("dev_clean"))
    assert (utterance["id"], utterance["text"], utterance["speaker"]) == ("84-121-0000", "GO ON", "84")
    assert len(utterance["samples"]) == 100
    for line in ("84-121-0000", "84-122-0000 GO", "../84-121-0000 GO"):
        (tmp_path / "dev-clean/84/121/84-121.trans.txt").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"84-121\.trans\.txt, line 1: expected 84-121-<number> TEXT"):
            librispeech(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no <subset>"):
        librispeech(tmp_path / "dev-clean")


def test_manifests_of_both_kinds(tmp_path):
    sound(tmp_path / "x" / "a.flac", 3)
    rows = [{"path": "x/a.flac", "text": "say \"go\" 'on'", "id": "one", "speaker": "s", "more": 1}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dev.tsv").write_text("utt_id\ttext\tpath\nu1\tsay \"go\" 'on'\tx/a.flac\nu2\t\tx/a.flac\n")
    corpus = find_recordings(tmp_path)
    assert corpus.splits == ("dev", "train")
    path = (tmp_path / "x/a.flac").resolve()
    assert corpus.files["train"] == [Recording("one", path, "say \"go\" 'on'", "s")]
    assert corpus.files["dev"] == [Recording("u1", path, "say \"go\" 'on'", ""), Recording("u2", path, "", "")]
    # the audio may lie elsewhere
    (tmp_path / "lists").mkdir()
    (tmp_path / "dev.tsv").rename(tmp_path / "lists/dev.tsv")
    assert manifests({"dev": tmp_path / "lists/dev.tsv"}, root=tmp_path).files["dev"][0].path == path


@pytest.mark.parametrize("name", ["../b.wav", "x/../../b.wav", "/etc/passwd", "link/b.wav", ".", "a\0b"])
@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_no_path_leads_out_of_the_root(tmp_path, name, kind):
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    sound(tmp_path / "b.wav", 1)
    (root / "link").symlink_to(tmp_path)
    row = f"path\ttext\n{name}\tgo\n" if kind == "tsv" else json.dumps({"path": name, "text": "go"}) + "\n"
    (root / f"dev.{kind}").write_text(row)
    with pytest.raises(ValueError, match=rf"dev\.{kind}, line {1 + (kind == 'tsv')}: path .* leads out of"):
        manifests({"dev": root / f"dev.{kind}"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dev.jsonl", '{"path": "a.wav", "text": "x"}\n{', r"dev\.jsonl, line 2: not a line of JSON"),
        ("dev.jsonl", "[1]\n", "line 1: expected an object"),
        ("dev.jsonl", '{"path": "a.wav"}\n', "line 1: field 'text' is missing"),
        ("dev.jsonl", '{"path": "", "text": "x"}\n', "line 1: field 'path' is empty"),
        ("dev.jsonl", '{"path": "a.wav", "text": "x", "id": ""}\n', "line 1: field 'id' is empty"),
        ("dev.jsonl", '{"path": "a.wav", "text": 3}\n', "field 'text' must be a string, got 3"),
        ("dev.jsonl", '{"path": "a.wav", "text": "x", "speaker": 3}\n', "field 'speaker' must be a string"),
        ("dev.jsonl", "", "the file has no rows"),
        ("dev.tsv", "path\ttext\na.wav\n", r"dev\.tsv, line 2: expected 2 columns"),
        ("dev.tsv", "path\ttext\na.wav\tgo\ton\n", r"dev\.tsv, line 2: expected 2 columns"),
        ("dev.tsv", "file\ttext\na.wav\tgo\n", r"dev\.tsv, line 2: field 'path' is missing"),
        ("dev.tsv", "path\ttext\n", "the file has no rows"),
        ("dev.tsv", "path\ttext\na.wav\tx\na.wav\ty\n", "split 'dev' has two recordings of the name 'a.wav'"),
        ("dev.csv", "", r"must end in \.tsv or \.jsonl"),
    ],
)
def test_faults_of_manifests(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        manifests({"dev": tmp_path / name})


def test_what_cannot_be_read_is_named_in_its_place(tmp_path):
    sound(tmp_path / "a.wav", 1)
    (tmp_path / "b.wav").write_bytes(b"")
    files = [Recording(name, tmp_path / f"{name}.wav", "go", "") for name in "bacd"]
    found = list(Recordings(files={"dev": files}).utterances("dev"))
    assert found[0] == Skipped("b", f"{tmp_path / 'b.wav'}: the file is empty")
    assert found[1]["id"] == "a"
    assert found[2:] == [Skipped(name, f"{tmp_path / name}.wav: no such file") for name in "cd"]


def test_the_fingerprint_follows_every_change(tmp_path):
    sound(tmp_path / "a.wav", 1)

    def of(**change):
        fields = {"id": "a", "path": tmp_path / "a.wav", "text": "go", "speaker": "s"} | change
        return Recordings(files={"dev": [Recording(**fields)]}).fingerprint()

    names = {of(), of(id="b"), of(text="on"), of(speaker="t"), of(path=tmp_path / "b.wav")}
    assert of() in names
    sound(tmp_path / "a.wav", 2, rate=8000)
    sound(tmp_path / "b.wav", 1)
    assert len(names | {of(), of(path=tmp_path / "b.wav")}) == 7


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=9), st.data())
def test_speakers_are_held_out_whole(counts, data):
    recordings = [Recording(f"{s}-{i}", Path("x"), "", str(s)) for s, n in enumerate(counts) for i in range(n)]
    sums = {0}
    for count in counts:
        sums |= {total + count for total in sums}
    size = data.draw(st.integers(-1, sum(counts) + 1))
    if 0 < size < sum(counts) and size in sums:
        kept, held = hold_out(recordings, size)
        assert len(held) == size
        assert sorted(kept + held) == sorted(recordings)
        assert not {r.speaker for r in kept} & {r.speaker for r in held}
        # neither the order of the recordings nor of the speakers matters
        order = data.draw(st.permutations(recordings))
        assert sorted(hold_out(order, size)[1]) == sorted(held)
    else:
        with pytest.raises(ValueError, match=f"size: no speakers of the {len(counts)} have {size} of the"):
            hold_out(recordings, size)


def test_sources_that_do_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr("zojax.data.audio.sources.data_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="'an4' needs ZOJAX_DATA"):
        find_recordings("an4")
    with pytest.raises(FileNotFoundError, match="holds no <subset>"):
        find_recordings(tmp_path)
    with pytest.raises(ValueError, match="split 'dev-clean': letters"):
        Recordings(files={"dev-clean": [Recording("a", Path("a"), "", "")]})
    with pytest.raises(ValueError, match="split 'dev' has no recordings"):
        Recordings(files={"dev": []})
