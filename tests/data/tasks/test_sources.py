"""Every published form of file, written by hand as its publisher writes it."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.tasks.examples import KNOWN
from zojax.data.tasks.prompts import TASKS
from zojax.data.tasks.sources import find_task_folder, load_rows

FILES = {
    ("sst2", "train.tsv"): 'sentence\tlabel\na "fine film \t1\nslow\t0\n',
    ("sst5", "train.txt"): "(3 (2 A) (4 (3 fine) (2 -LRB-film-RRB-)))\n(0 (1 Bad) (2 -RRB-))\n",
    ("trec", "train_5500.label"): "HUM:ind Who wrote Emma ?\nNUM:date When ?\n",
    ("rte", "train.tsv"): "index\tsentence1\tsentence2\tlabel\n0\tIt rains.\tIt is wet.\tnot_entailment\n",
    ("mnli", "multinli_1.0_train.jsonl"): '{"gold_label": "-", "sentence1": "a", "sentence2": "b"}\n'
    '{"gold_label": "neutral", "sentence1": "a", "sentence2": "b"}\n',
    ("snli", "snli_1.0_train.jsonl"): '{"gold_label": "entailment", "sentence1": "a", "sentence2": "b"}\n',
    ("squad", "train-v1.1.json"): json.dumps(
        {
            "version": "1.1",
            "data": [
                {
                    "title": "Tea",
                    "paragraphs": [
                        {
                            "context": "Tea is hot.",
                            "qas": [
                                {"id": "1", "question": "What?", "answers": [{"text": "Tea", "answer_start": 0}]},
                                {"id": "2", "question": "How?", "answers": [{"text": "hot", "answer_start": 7}]},
                            ],
                        }
                    ],
                }
            ],
        }
    ),
    ("drop", "drop_dataset_train.json"): json.dumps(
        {
            "nfl_1": {
                "passage": "Ann won 3-1.",
                "qa_pairs": [
                    {
                        "question": "By how many?",
                        "query_id": "q",
                        "answer": {"number": "2", "date": {"day": "", "month": "", "year": ""}, "spans": []},
                    }
                ],
            }
        }
    ),
}
EXPECTED = {
    "sst2": [{"text": 'a "fine film ', "label": 1}, {"text": "slow", "label": 0}],
    "sst5": [{"text": "A fine -LRB-film-RRB-", "label": 3}, {"text": "Bad )", "label": 0}],
    "trec": [{"text": "Who wrote Emma ?", "label": 3}, {"text": "When ?", "label": 5}],
    "rte": [{"premise": "It rains.", "hypothesis": "It is wet.", "label": 1}],
    "mnli": [{"premise": "a", "hypothesis": "b", "label": 1}],
    "snli": [{"premise": "a", "hypothesis": "b", "label": 0}],
    "squad": [
        {"context": "Tea is hot.", "question": "What?", "title": "Tea", "answers": ["Tea"]},
        {"context": "Tea is hot.", "question": "How?", "title": "Tea", "answers": ["hot"]},
    ],
    "drop": [{"context": "Ann won 3-1.", "question": "By how many?", "answers": ["2"]}],
}


def numbered(rows):
    return [{**row, "id": i} for i, row in enumerate(rows)]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_published_file(tmp_path, name, file):
    (tmp_path / file).write_text(FILES[name, file])
    assert load_rows(name, "train", tmp_path) == numbered(EXPECTED[name])


@pytest.mark.parametrize("name", TASKS)
def test_json_lines_of_published_records(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "val.jsonl").write_text(json.dumps(KNOWN[name].record) + "\n" + json.dumps(KNOWN[name].record))
    # A folder of folders is as good as the folder.
    for source in (tmp_path, tmp_path / name):
        assert load_rows(name, "dev", source) == numbered([KNOWN[name].row] * 2)


@pytest.mark.parametrize("name", ["trec", "cb", "boolq", "squad"])
def test_a_snapshot_of_a_hub_data_set(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    record, metadata = dict(KNOWN[name].record), {}
    if name in ("trec", "cb"):
        field = "coarse_label" if name == "trec" else "label"
        names = {
            "trec": ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"],
            "cb": ["entailment", "contradiction", "neutral"],
        }
        record[field] = names[name].index(record.pop("label-coarse" if name == "trec" else "label"))
        features = {field: {"names": names[name], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
        metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pa.Table.from_pylist([record]).replace_schema_metadata(metadata)
    (tmp_path / "data").mkdir()
    for shard in range(2):
        parquet.write_table(table, tmp_path / "data" / f"validation-0000{shard}-of-00002.parquet")
    assert load_rows(name, "dev", tmp_path) == numbered([KNOWN[name].row] * 2)


class PreparedTask(tfds.core.GeneratorBasedBuilder):
    """A data set with the features of `super_glue/cb` or `squad`, as TFDS has them."""

    VERSION = tfds.core.Version("1.0.2")
    code_path = None
    name = "prepared_task"
    task = "cb"

    def _info(self):
        features = {
            "cb": {
                "premise": tfds.features.Text(),
                "hypothesis": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["entailment", "contradiction", "neutral"]),
                "idx": np.int32,
            },
            "squad": {
                "id": tfds.features.Text(),
                "title": tfds.features.Text(),
                "context": tfds.features.Text(),
                "question": tfds.features.Text(),
                "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32}),
            },
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features[self.task]))

    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples()}

    def _generate_examples(self):
        record = dict(KNOWN[self.task].record)
        yield 0, record | ({"idx": 7} if self.task == "cb" else {})


@pytest.mark.parametrize("name", ["cb", "squad"])
def test_a_folder_that_tfds_has_prepared(tmp_path, monkeypatch, name):
    monkeypatch.setattr(PreparedTask, "task", name)
    builder = PreparedTask(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    assert load_rows(name, "dev", builder.data_path) == numbered([KNOWN[name].row])
    with pytest.raises(FileNotFoundError, match="has no split 'train'; TFDS has prepared"):
        load_rows(name, "train", builder.data_path)


def test_which_file_is_a_split(tmp_path):
    line = json.dumps(KNOWN["mnli"].record)
    for file in ("dev_matched.jsonl", "dev_mismatched.jsonl", "train.jsonl", "README.md", "training_notes.md"):
        (tmp_path / file).write_text(line)
    assert len(load_rows("mnli", "dev", tmp_path)) == 1
    (tmp_path / "validation.jsonl").write_text(line)
    with pytest.raises(
        ValueError, match=r"holds 2 files of the split 'dev' of mnli.*dev_matched.jsonl, validation.jsonl"
    ):
        load_rows("mnli", "dev", tmp_path)
    (tmp_path / "TREC_10.label").write_text("HUM:ind Who ?")
    assert load_rows("trec", "test", tmp_path)[0]["text"] == "Who ?"


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "sst2",
            "train.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}',
            "train.jsonl, record 2: field 'label' is missing",
        ),
        ("sst2", "train.jsonl", "{", "train.jsonl, line 1: not a line of JSON"),
        ("sst2", "train.jsonl", "[1]", "line 1: expected an object"),
        ("sst2", "train.jsonl", "", "the split 'train' of sst2 has no rows"),
        ("squad", "train.json", "[]", "expected an object, as SQuAD's"),
        ("squad", "train.json", '{"data": [3]}', "record 1: a record of an unknown form"),
        ("sst5", "train.txt", "fine", "line 1: not a tree"),
        ("trec", "train_5500.label", "Who ?", "line 1: not a line such as"),
        ("copa", "train.jsonl", '{"premise": 1, "label": 0}', "record 1: field 'premise' must be a string"),
    ],
)
def test_a_faulty_file_is_named(tmp_path, name, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=r"\w") as error:
        load_rows(name, "train", tmp_path)
    assert message in str(error.value)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no task 'sst3'"):
        load_rows("sst3", "train", tmp_path)
    with pytest.raises(ValueError, match="split is 'validation'; it must be one of train, dev, test"):
        load_rows("sst2", "validation", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no file of the split 'train' of sst2"):
        load_rows("sst2", "train", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        load_rows("sst2", "train", tmp_path / "nowhere")
    monkeypatch.setenv("ZOJAX_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no data: there is no folder .*wic"):
        find_task_folder("wic")


# From the official sizes and majority classes: CB 119 contradictions of 250 and 16 neutral, BoolQ is mostly yes,
# WSC's dev set has 38 true of 104, MultiRC's 4,848 answers, COPA's dev set 55 first choices of 100.
@pytest.mark.parametrize(
    ("name", "split", "size", "label", "count"),
    [
        ("sst2", "dev", 872, 1, 444),
        ("rte", "dev", 277, 0, 146),
        ("cb", "train", 250, 1, 119),
        ("cb", "dev", 56, 2, 5),
        ("boolq", "dev", 1000, 0, 617),
        ("wsc", "dev", 104, 1, 38),
        ("multirc", "dev", 4848, 1, 2075),
        ("copa", "dev", 100, 0, 55),
        ("record", "dev", 32, None, 0),
        ("squad", "dev", 1190, None, 0),
        ("qnli", "dev", 1500, 1, 758),
    ],
)
def test_the_data_beside_the_checkout(zojax_data, name, split, size, label, count):
    rows = load_rows(name, split, zojax_data / "text")
    assert len(rows) == size
    assert sum(row.get("label") == label for row in rows) == (count or size)
