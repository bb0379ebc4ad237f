"""GLUE's files as they are distributed: by the cards and by a path, with and without header, labels and quotes."""

from __future__ import annotations

import pytest

from align.configs import Data, RunConfig
from align.data.records import read_rows
from align.errors import ConfigError
from align.runtime.job import Inputs, Job
from align.stages import data

MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
MRPC = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"

# Of each card: its files, and the rows of each split as (texts, label or score).
SETS = {
    "sst2": (
        {
            "SST-2/train.tsv": 'sentence\tlabel\na "fine" film \t1\n"dull , and long \t0\n',
            "SST-2/dev.tsv": "sentence\tlabel\nnot bad \t1\n",
            "SST-2/test.tsv": "index\tsentence\n0\tfunny\n1\tsad\n",
        },
        {"train": [('a "fine" film ', "1"), ('"dull , and long ', "0")], "validation": [("not bad ", "1")]},
        {"no label": 2},
    ),
    "sst2 without header": (
        {"SST-2/train.tsv": "a fine film\t1\na dull one\t0\n", "SST-2/dev.tsv": "1\tnot bad\n"},
        {"train": [("a fine film", "1"), ("a dull one", "0")], "validation": [("not bad", "1")]},
        {},
    ),
    "cola": (
        {
            "CoLA/train.tsv": 'gj04\t1\t\t"Go," he said.\nks08\t0\t*\tHim go.\n',
            "CoLA/dev.tsv": "gj04\t1\t\tWe went.\n",
            "CoLA/test.tsv": "index\tsentence\n0\tThey go.\n",
        },
        {"train": [('"Go," he said.', "1"), ("Him go.", "0")], "validation": [("We went.", "1")]},
        {"no label": 1},
    ),
    "mrpc": (
        {
            "glue_data/MRPC/train.tsv": f'\ufeff{MRPC}1\t10\t11\t"We won, he said.\tHe said: "We won."\n'
            '0\t12\t13\tA\tB"\n',
            "glue_data/MRPC/dev.tsv": MRPC + "1\t20\t21\tIt rains.\tIt is raining.\n",
            "glue_data/MRPC/test.tsv": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t30\t31\tYes.\tNo.\n",
            "glue_data/MRPC/msr_paraphrase_test.txt": MRPC + "0\t30\t31\tYes.\tNo.\n",
        },
        {
            "train": [(('"We won, he said.', 'He said: "We won."'), "1"), (("A", 'B"'), "0")],
            "validation": [(("It rains.", "It is raining."), "1")],
            "test": [(("Yes.", "No."), "0")],
        },
        {"no label": 1},
    ),
    "qqp": (
        {
            "QQP/train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
            "1\t2\t3\tWhy?\tHow so?\t1\n4\t5\t6\tWho\nis it?\tWho?\t0\n",
            "QQP/test.tsv": "id\tquestion1\tquestion2\n0\tWhen?\tWhere?\n",
        },
        {"train": [(("Why?", "How so?"), "1")]},
        {"no label": 1, "malformed": 2},
    ),
    "stsb": (
        {
            "STS-B/train.tsv": f"{STSB}\tscore\n0\tnews\tMSR\t2012\t1\tnone\tnone\tA dog.\tA cat.\t2.400\n",
            "STS-B/dev.tsv": f"{STSB}\tscore\n0\tnews\tMSR\t2012\t1\tnone\tnone\tA cow.\tA bull.\t4\n",
            "STS-B/test.tsv": f"{STSB}\n0\tnews\tMSR\t2012\t1\tnone\tnone\tA hen.\tAn egg.\n",
        },
        {"train": [(("A dog.", "A cat."), 2.4)], "validation": [(("A cow.", "A bull."), 4.0)]},
        {"no label": 1},
    ),
    "mnli": (
        {
            "MNLI/train.tsv": f"{MNLI}0\t1\t1n\tfiction\t( a )\t( b )\tHe ran.\tHe moved.\tentailment\tentailment\n"
            "1\t2\t2n\tfiction\t( a )\t( b )\tHe sat.\tHe ate.\tneutral\t-\n",
            "MNLI/dev_matched.tsv": f"{MNLI}0\t1\t1n\tfiction\ta\tb\tIt is.\tIt is not.\tneutral\tcontradiction\n",
            "MNLI/dev_mismatched.tsv": f"{MNLI}0\t1\t1n\tletters\t( a )\t( b )\tDear you.\tHello.\tneutral\tneutral\n",
        },
        {
            "train": [(("He ran.", "He moved."), "entailment")],
            "validation": [(("It is.", "It is not."), "contradiction")],
            "test": [(("Dear you.", "Hello."), "neutral")],
        },
        {"no label": 1},
    ),
    "qnli": (
        {
            "QNLI/train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho?\tKim did.\tentailment\n",
            "QNLI/test.tsv": "index\tquestion\tsentence\n0\tWhy?\tLee did.\n",
        },
        {"train": [(("Kim did.", "Who?"), "entailment")]},
        {"no label": 1},
    ),
    "rte": (
        {"RTE/train.tsv": "index\tsentence1\tsentence2\tlabel\n0\tIt rained.\tIt was wet.\tnot_entailment\n"},
        {"train": [(("It rained.", "It was wet."), "not_entailment")]},
        {},
    ),
    "wnli": (
        {"WNLI/dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tHe fell.\tKim fell.\t0\n", "WNLI/train.tsv": ""},
        {"validation": [(("He fell.", "Kim fell."), "0")]},
        {},
    ),
    "rte_challenges": (
        {
            "rte_challenges/rte1_dev.xml": '<?xml version="1.0" encoding="ISO-8859-1"?><entailment-corpus>'
            '<pair id="1" value="TRUE" task="IR"><t>A caf\xe9\n opened.</t><h>It is &amp; was.</h></pair>'
            '</entailment-corpus>',
            "rte_challenges/RTE3-DEV-FINAL.xml": '<entailment-corpus><pair id="2" entailment="NO" task="IE">'
            "<t>He sat.</t><h>He ran.</h></pair></entailment-corpus>",
            "rte_challenges/RTE2_test.xml": '<entailment-corpus><pair id="3" task="IE"><t>a</t><h>b</h></pair>'
            '<pair id="4" entailment="UNKNOWN" task="IE"><t>c</t><h>d</h></pair></entailment-corpus>',
        },
        {
            "train": [(("A café opened.", "It is & was."), "entailment"), (("He sat.", "He ran."), "not_entailment")],
            "test": [(("c", "d"), "not_entailment")],
        },
        {"no label": 1},
    ),
}  # fmt: skip


def made(folder, source, **knobs):
    """The rows of each split that a source gives, and how many were dropped for what."""
    job = Job("data", folder / "made", RunConfig(data_root=str(folder)))
    job.out.mkdir(parents=True)
    metrics = data.run(Data(source=source, record="labelled", **knobs), Inputs(), job)
    splits = {}
    for split in ("train", "validation", "test"):
        rows = sorted(
            (row["texts"][0] if len(row["texts"]) == 1 else tuple(row["texts"]), row.get("label", row.get("score")))
            for row in read_rows([job.out], split)
        )
        if rows:
            splits[split] = rows
    return splits, {name.removeprefix("dropped/"): n for name, n in metrics.items() if name.startswith("dropped/")}


def written(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="iso-8859-1" if "ISO-8859-1" in content else "utf-8")


@pytest.mark.parametrize("name", SETS)
def test_the_files_of_a_set_are_read_by_its_card(tmp_path, name):
    files, splits, dropped = SETS[name]
    written(tmp_path, files)
    expected = {split: sorted(rows) for split, rows in splits.items()}
    assert made(tmp_path, f"card:{name.partition(' ')[0]}") == (expected, dropped)


@pytest.mark.parametrize("name", [name for name in SETS if name not in ("qqp", "mnli", "mrpc", "rte_challenges")])
def test_the_folder_of_a_set_is_read_by_its_columns_and_names(tmp_path, name):
    files, splits, dropped = SETS[name]
    written(tmp_path, files)
    folder = next(iter(files)).partition("/")[0]
    expected = {split: sorted(rows) for split, rows in splits.items()}
    assert made(tmp_path, f"path:{tmp_path}/{folder}") == (expected, dropped)


def test_a_user_s_row_of_another_width_is_refused_with_its_line(tmp_path):
    written(tmp_path, SETS["qqp"][0])
    with pytest.raises(ConfigError, match=r"train\.tsv:3: cells: expected 6, as the first line has, got 4; ") as caught:
        made(tmp_path, f"path:{tmp_path}/QQP")
    assert str(caught.value).endswith(" (and 1 more row like it)")


def test_a_table_of_a_labelled_set_may_end_in_txt(tmp_path):
    written(tmp_path, {"msr_train.txt": MRPC + '1\t1\t2\t"a\tb\n'})
    assert made(tmp_path, f"path:{tmp_path}/msr_train.txt") == ({"train": [(('"a', "b"), "1")]}, {})


def test_columns_that_are_read_from_no_header_are_reported(tmp_path, capsys):
    written(tmp_path, SETS["cola"][0])
    made(tmp_path, f"path:{tmp_path}/CoLA")
    said = f"{tmp_path}/CoLA/train.tsv: has no line of column names; read as source, label, mark, sentence"
    assert said in capsys.readouterr().err
