"""Reading, checking and preparing folders of JSON lines."""

import json
import subprocess
import sys

import pytest

from zojax.data import text
from zojax.data.text import JsonlClassification, data_root, find_folder, load, read_jsonl


def write(folder, split, rows):
    folder.mkdir(exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


GOOD = {"text": "fine", "label": 1}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('{"text": "cut', "not a line of JSON"),
        ("", "not a line of JSON"),
        ("[1, 2]", "expected an object"),
        ({"text": "fine"}, "field 'label' is missing"),
        ({"label": 1}, "field 'text' is missing"),
        ({"text": 3, "label": 1}, "field 'text' must be a string"),
        ({"text": " ", "label": 1}, "field 'text' must be a string"),
        ({"text": "fine", "label": 2}, r"field 'label' must be an integer in 0\.\.1, got 2"),
        ({"text": "fine", "label": -1}, "got -1"),
        ({"text": "fine", "label": "1"}, "got '1'"),
        ({"text": "fine", "label": 1.0}, r"got 1\.0"),
        ({"text": "fine", "label": True}, "got True"),
        ({"text": "fine", "label": None}, "got None"),
    ],
)
def test_a_bad_row_names_file_line_and_fault_and_nothing_is_written(tmp_path, row, fault):
    folder = write(tmp_path / "source", "train", [GOOD, row, GOOD])
    with pytest.raises(ValueError, match=rf"train\.jsonl, line 2: .*{fault}"):
        load(folder, "train", data_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_bad_row_of_another_split_is_found_as_well(tmp_path):
    write(tmp_path, "train", [GOOD])
    write(tmp_path, "test", [{"text": "fine", "label": 7}])
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1"):
        load(tmp_path, "train", data_dir=tmp_path / "cache")


def test_text_that_is_not_utf8(tmp_path):
    (tmp_path / "dev.jsonl").write_bytes(b'{"text": "caf\xe9", "label": 0}\n')
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 1: not a line of JSON"):
        read_jsonl(tmp_path / "dev.jsonl")


def test_an_empty_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"train\.jsonl: the file has no rows"):
        load(write(tmp_path, "train", []), "train", data_dir=tmp_path / "cache")


def test_sources_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'nosuch' is neither"):
        load("nosuch", "train", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds none of train\.jsonl"):
        load(tmp_path, "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="split 'validation' of 'reviews' does not exist"):
        load("reviews", "validation", data_dir=tmp_path)
    monkeypatch.setattr(text, "data_root", lambda: None)
    with pytest.raises(FileNotFoundError, match="'sst2' needs ZOJAX_DATA"):
        find_folder("sst2")
    monkeypatch.setattr(text, "data_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=f"'sst2' is not in {tmp_path}"):
        find_folder("sst2")


def test_data_root_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOJAX_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.setenv("ZOJAX_DATA", str(tmp_path / "nosuch"))
    with pytest.raises(FileNotFoundError, match="ZOJAX_DATA="):
        data_root()


def test_rows_come_back_in_order_and_by_random_access(tmp_path):
    rows = [{"text": f"Crème {i} \u2028 東京 \n", "label": i % 3, "extra": i} for i in range(300)]
    loaded = load(write(tmp_path, "dev", rows), "dev", data_dir=tmp_path / "cache", num_classes=3)
    assert list(loaded) == [{"text": row["text"], "label": row["label"], "id": i} for i, row in enumerate(rows)]
    assert loaded[-1]["id"] == 299
    assert [row["id"] for row in loaded[290::4]] == [290, 294, 298]
    assert loaded[-3:][0]["id"] == 297
    with pytest.raises(IndexError):
        loaded[300]
    with pytest.raises(IndexError):
        loaded[-301]


def test_an_edited_source_is_never_served_stale(tmp_path):
    cache = tmp_path / "cache"
    folder = write(tmp_path / "source", "train", [GOOD])
    assert load(folder, "train", data_dir=cache)[0]["text"] == "fine"
    write(folder, "train", [{"text": "poor", "label": 0}])
    assert load(folder, "train", data_dir=cache)[0]["text"] == "poor"
    write(folder, "train", [GOOD])
    assert load(folder, "train", data_dir=cache)[0]["text"] == "fine"
    # moving a row from one split to another keeps the bytes of all files together and is a change
    write(folder, "train", [GOOD, GOOD])
    two = text.jsonl_config(folder).name
    write(write(folder, "train", [GOOD]), "test", [GOOD])
    assert text.jsonl_config(folder).name != two


def test_prepared_once_and_without_leftovers(tmp_path, monkeypatch):
    folder = write(tmp_path / "source", "train", [GOOD])
    load(folder, "train", data_dir=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["jsonl_classification"]

    def fail(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr(JsonlClassification, "download_and_prepare", fail)
    assert len(load(folder, "train", data_dir=tmp_path / "cache")) == 1
    # the environment names the cache where the argument does not
    monkeypatch.setenv("ZOJAX_CACHE", str(tmp_path / "cache"))
    assert len(load(folder, "train")) == 1


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(JsonlClassification, "download_and_prepare", fail)
    folder = write(tmp_path / "source", "train", [GOOD])
    with pytest.raises(OSError, match="no space"):
        load(folder, "train", data_dir=tmp_path / "cache")
    monkeypatch.undo()
    assert len(load(folder, "train", data_dir=tmp_path / "cache")) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["jsonl_classification"]


def test_another_process_is_first(tmp_path, monkeypatch):
    folder = write(tmp_path / "source", "train", [GOOD])
    prepare = JsonlClassification.download_and_prepare
    entered = []

    def overtaken(self, *args, **kwargs):
        if not entered:
            entered.append(True)
            load(folder, "train", data_dir=tmp_path / "cache")  # the other one, from start to end
        prepare(self, *args, **kwargs)

    monkeypatch.setattr(JsonlClassification, "download_and_prepare", overtaken)
    assert len(load(folder, "train", data_dir=tmp_path / "cache")) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["jsonl_classification"]


def test_two_processes_at_once_and_no_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from zojax.data.text import load\n"
        "assert 'tensorflow' not in sys.modules\n"
        "rows = load('reviews', 'test', data_dir=sys.argv[1])\n"
        "assert rows[199]['id'] == 199 and len(rows) == 200\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
        assert stdout == b""
    assert [path.name for path in tmp_path.iterdir()] == ["jsonl_classification"]


def test_sst2(tmp_path, zojax_data):
    sizes = {split: len(load("sst2", split, data_dir=tmp_path)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 6920, "dev": 872, "test": 1821}


def test_preparing_says_one_line_and_no_more(tmp_path, capfd, caplog):
    text.load("reviews", "dev", data_dir=tmp_path)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert str(tmp_path) in err
    assert not caplog.records
    text.load("reviews", "dev", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")
