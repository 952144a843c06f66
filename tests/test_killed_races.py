"""Races of one rule after another: what they share, and what one that was killed goes on with."""

from pathlib import Path

import pytest
from command_line import RUN, fit, results, tiny

import lightning_l2l.evaluation.comparison
import lightning_l2l.learners.meta_learner
from lightning_l2l.cli import main


def test_results_of_several_tests_of_one_rule_stay_apart(fitted):
    main(tiny("test", "--ckpt_path=best"))
    main(tiny("test", "--ckpt_path=best", "--data.horizon=12", "--comparison.results=longer"))
    assert [results(RUN / folder)[0]["experiment"] for folder in ("", "longer")] == ["quadratic", "longer"]


def test_a_killed_test_goes_on_with_the_baselines_it_has(monkeypatch, fitted):
    main(tiny("test", "--ckpt_path=best"))
    kept = {path.name: path.stat().st_mtime_ns for path in Path("runs/baselines").iterdir()}
    first = (RUN / "results.csv").read_text()

    def forbidden(*_):
        raise AssertionError("a baseline was tuned again")

    monkeypatch.setattr("lightning_l2l.evaluation.comparison.tune", forbidden)
    main(tiny("test", "--ckpt_path=best"))
    assert (RUN / "results.csv").read_text() == first
    another = "--trainer.logger.init_args.name=another"
    fit(another, "--seed_everything=2")
    main(tiny("test", another, "--ckpt_path=best"))
    now = {path.name: path.stat().st_mtime_ns for path in Path("runs/baselines").iterdir()}
    assert now == kept


def test_a_test_killed_between_two_baselines_goes_on_with_the_next(monkeypatch, fitted):
    run, names = lightning_l2l.evaluation.comparison.evaluate, []

    def killed(rule, *args):
        names.append(rule.label)
        if names == ["SGD", "NAG", "RMSprop"]:
            raise KeyError("killed")
        return run(rule, *args)

    monkeypatch.setattr("lightning_l2l.evaluation.comparison.evaluate", killed)
    command = tiny("test", "--data.episodes_per_batch=8", "--ckpt_path=best")
    with pytest.raises(KeyError, match="killed"):
        main(command)
    main(command)
    assert names == ["SGD", "NAG", "RMSprop", "RMSprop", "Adam"]
    rows = results()
    assert [row["rule"] for row in rows] == ["LSTM", "SGD", "NAG", "RMSprop", "Adam"]
