"""YAML that stands for more than it says is refused in one sentence, at once."""

import json
import time
from pathlib import Path

import pytest
import yaml

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.problems import read_file
from lightning_l2l.yaml_files import MOST_BYTES, check_yaml, load_yaml, read_yaml

CYCLE = "model: &a {rule: *a}\n"
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))
DEEP = "a: " + "[" * 60 + "]" * 60
BAD = {"cycle": CYCLE, "bomb": BOMB, "deep": DEEP, "list": "a: &a [1, *a]", "quoted": f"a: {json.dumps(BOMB)}"}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_endless_yaml_is_refused_by_all_who_read_it(text, fails):
    began = time.process_time()
    Path("bad.yaml").write_text(text)
    assert "is YAML that" in fails("fit", "--config", "bad.yaml")
    with pytest.raises(InvalidInputError, match="is YAML that"):
        read_file("bad.yaml")
    assert "is YAML that" in fails("fit", "--config", "mnist.yaml", f"--model={text}")
    assert time.process_time() - began < 5


def test_a_class_in_a_file_of_its_own_is_read_within_the_same_limits(fails):
    Path("bad.yaml").write_text("class_path: pytorch_lightning.loggers.CSVLogger\ninit_args: &a {x: *a}\n")
    assert "is YAML that contains itself" in fails("fit", "--config", "mnist.yaml", "--trainer.logger=bad.yaml")


def test_deeper_nesting_than_the_parser_can_is_no_config(fails):
    Path("bad.yaml").write_text("a: " + "[" * 5_000 + "]" * 5_000)
    assert "nest" in fails("fit", "--config", "bad.yaml")
    with pytest.raises(InvalidInputError, match=r"bad\.yaml"):
        read_file("bad.yaml")


def test_a_huge_file_is_not_read():
    with Path("big.yaml").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InvalidInputError, match="a has more than 10,000,000 bytes"):
        read_yaml(Path("big.yaml"), "a")


def test_anchors_and_merges_work():
    text = "a: &a {x: 1}\nb: {<<: *a, y: *a}\nc: &c [*a, *a]\nd: *c\n"
    assert load_yaml(text, "a") == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["a: 2020-13-45", "a: !!timestamp x", "a: !!bool x", "a: *b"])
def test_what_means_nothing_is_no_yaml(text):
    check_yaml(text, "a")
    with pytest.raises(yaml.YAMLError):
        load_yaml(text, "a")


def test_a_key_stands_once(fails):
    Path("mine.yaml").write_text("data: {horizon: 5}\nmodel: {unroll: 5}\ndata: {seed: 1}\n")
    assert "mine.yaml, which is YAML that has the key data again in line 3" in fails("fit", "--config", "mine.yaml")
    check_yaml("a: &a {x: 1}\nb: &b {y: 1}\nc: {<<: *a, <<: *b, x: 2}\n[x]: 1\n", "a")


@pytest.mark.parametrize("number", [".nan", "9" * 19, "-" + "9" * 5_000])
def test_numbers_are_some(number):
    with pytest.raises(InvalidInputError, match=r"has [-.\w]+ in line 2: give a number within 64 bits"):
        check_yaml(f"b: 1\na: {number}", "a")
    check_yaml(f"a: '{number}'", "a")  # which is text
    check_yaml("a: " + "9" * 18, "a")


def test_the_largest_number_of_64_bits_is_one():
    check_yaml(f"a: {2**63 - 1}\nb: {-(2**63)}", "a")
    with pytest.raises(InvalidInputError, match="within 64 bits"):
        check_yaml(f"a: {2**63}", "a")
