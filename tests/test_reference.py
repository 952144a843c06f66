"""The table of what Adam reaches on each task of a suite."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_l2l.cli import main
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.reference import RATES, lowest_losses, write_reference
from lightning_l2l.meta_losses import LogLoss
from lightning_l2l.optimizees import Part, Suite
from lightning_l2l.optimizees.families import Tables, Teachers
from lightning_l2l.rules import Adam
from lightning_l2l.unroll import learning_curves

LINEAR = "lightning_l2l.optimizees.families.Teachers"


def suite(**settings) -> Suite:
    families = {"linear": Part(Teachers(linear=True))}
    return Suite(**{"families": families, "horizon": 20, "episodes_per_batch": 4, "train_episodes": 4} | settings)


def test_the_lowest_losses_of_four_rates_are_averaged_between_steps():
    episodes = suite().episodes("tune", range(4))
    steps = np.array([1, 2, 5, 20])
    curves = torch.stack([learning_curves(Adam(rate), episodes, 20).mean(0) for rate in RATES]).double()
    expected = [curves[:, first + 1 : end + 1].mean(1).min() for first, end in ((0, 1), (1, 2), (2, 5), (5, 20))]
    np.testing.assert_allclose(lowest_losses(episodes, steps), expected, rtol=1e-4)


def test_the_command_writes_what_a_suite_reads(capsys):
    family = f"{{linear: {{family: {{class_path: {LINEAR}, init_args: {{linear: true}}}}, weight: 1}}}}"
    small = ["--data=lightning_l2l.optimizees.Suite", f"--data.families={family}", "--data.horizon=20"]
    rule = "--model.rule=lightning_l2l.rules.PerCoordinateMLP"
    main(["reference", "--output", "tables/own.npz", rule, *small])
    assert "Written: tables/own.npz" in capsys.readouterr().out
    data = suite(reference="tables/own.npz")
    episodes = data.episodes("train", range(4))
    late = episodes.reference(10, 10)
    assert late.shape == (10, 4) and torch.equal(late[:, 0], late[:, 3])
    assert (late[-1] < episodes.reference(0, 1)[0]).all()
    twice = episodes.repeat(2).reference(10, 10)
    assert torch.equal(twice, late.repeat(1, 2))
    losses = torch.full((10, 4), 0.5)
    assert not torch.equal(LogLoss()(losses, 10, 20, late), LogLoss()(losses, 10, 20))


def test_the_table_is_an_npz():
    with pytest.raises(InvalidInputError, match=r"--output is own.txt: give it the ending .npz"):
        write_reference(suite(), Path("own.txt"))


def test_random_scaling_keeps_the_reference():
    write_reference(suite(), Path("own.npz"))
    data = suite(reference="own.npz", random_scaling=1.0)
    (batch,) = data.train_dataloader()
    assert torch.equal(batch.reference(0, 20), batch.episodes.reference(0, 20))
    assert suite().episodes("train", range(4)).reference(0, 20) is None


def test_a_table_that_does_not_fit_is_refused(caplog):
    write_reference(suite(), Path("own.npz"))
    with pytest.raises(InvalidInputError, match=r"data.reference is own.npz, which ends at step 20, before 30"):
        suite(reference="own.npz", horizon=30)
    with pytest.raises(InvalidInputError, match="which has no losses of the task tables: breast_cancer"):
        suite(reference="own.npz", families={"tables": Part(Tables())})
    with np.load("own.npz") as file:
        kept = dict(file)
    falling = kept["steps"][::-1].astype(np.uint32)
    steps = ({"steps": falling}, {"steps": kept["steps"][:0]}, {"steps": np.array(20)})
    for changes in ({"losses": kept["losses"][:, 1:]}, *steps):
        np.savez("bad.npz", **(kept | changes))
        with pytest.raises(InvalidInputError, match="whose steps do not rise from 1, or whose losses are not one for"):
            suite(reference="bad.npz")
    with pytest.raises(InvalidInputError, match=r"data.reference is .*nowhere.npz, which is not there"):
        suite(reference="nowhere.npz")


def test_the_command_needs_data(fails):
    assert "data is missing" in fails("reference", "--output", "own.npz")
