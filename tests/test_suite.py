"""A suite: which task an episode belongs to, units, and episodes in processes, checkpoints and meta-gradients."""

from collections import Counter
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from command_line import families_in
from small_problem import STEPS, LearnedMomentum, meta_gradient, meta_loss

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.problems import make_data
from lightning_l2l.meta_gradients import Exact, kept_runs
from lightning_l2l.optimizees import Part, Suite
from lightning_l2l.optimizees.families import Tables, Teachers
from lightning_l2l.optimizees.suite import SMALLEST_UNIT
from lightning_l2l.optimizees.trained_starts import draw_steps
from lightning_l2l.rules import SGD
from lightning_l2l.unroll import start


class Size(NamedTuple):
    inputs: int


class WithoutBatches(Tables):
    rows = (Size(3),)

    def __init__(self):
        pass


def suite(**settings) -> Suite:
    families = {"tables": Part(Tables(), 3.0), "teachers": Part(Teachers(), 1.0), "linear": Part(Teachers(True), 0.0)}
    return Suite(**{"families": families, "horizon": STEPS, "episodes_per_batch": 4, "train_episodes": 24} | settings)


def batches(data, split="train", processes=1, rank=0, epoch=0):
    data.trainer = SimpleNamespace(world_size=processes, global_rank=rank, current_epoch=epoch)
    return list(getattr(data, f"{split}_dataloader")())


def drawn(data):
    return [data.task("train", 4 * batch) for batch in range(400)]


def test_families_get_their_shares_in_every_stretch_of_training():
    data = suite()
    for first in (0, 1_000):
        families = Counter(data.task("train", 4 * batch).split(":")[0] for batch in range(first, first + 40))
        assert families["linear"] == 0 and abs(families["tables"] - 30) <= 1
    first, again, other = (drawn(data) for data in (data, suite(), suite(seed=1)))
    assert len(set(first)) == len(Tables().tasks(horizon=1)) + len(Teachers().tasks(horizon=1))
    assert first == again != other


def test_validation_goes_through_all_tasks_held_out_and_the_others_through_all():
    data = suite(episodes_per_task=2)
    seen = [data.task("val", number) for number in range(data.val_episodes)]
    assert list(Counter(seen).values()) == [2] * len(Teachers(True).tasks(horizon=1))
    assert {name.split(":")[0] for name in seen} == {"linear"}
    for split, count in (("test", data.test_episodes), ("tune", data.tuning_episodes)):
        assert {data.task(split, number) for number in range(count)} == set(data.tasks)
    assert [len(batch) for batch in batches(data, "val")] == [2] * len(Teachers(True).tasks(horizon=1))
    assert len(data.tuning_batches()) == len(data.tasks)


def test_losses_are_in_units_of_the_mean_first_loss():
    episodes = suite(episodes_per_batch=32, train_episodes=32).episodes("train", range(32))
    losses, grads = episodes.value_and_grad(episodes.theta, 0)
    inner, inner_grads = episodes.episodes.value_and_grad(episodes.theta, 0)
    assert 0.8 < losses.mean() < 1.25 and inner.mean() / losses.mean() != 1
    torch.testing.assert_close(inner / losses, torch.full_like(losses, episodes.unit))
    torch.testing.assert_close(inner_grads / episodes.unit, grads)
    vector = torch.randn_like(grads)
    product = episodes.hessian_product(episodes.theta, 0, vector)
    torch.testing.assert_close(episodes.episodes.hessian_product(episodes.theta, 0, vector) / episodes.unit, product)


def test_runs_may_begin_with_trained_parameters():
    fresh, trained = (batches(suite(trained_starts=share)) for share in (0.0, 1.0))
    for before, after in zip(fresh, trained, strict=True):
        loss = after.episodes.loss(after.theta, 0).mean()
        assert after.numbers.equal(before.numbers) and loss < before.episodes.loss(before.theta, 0).mean()
        assert after.unit == pytest.approx(max(loss.item(), SMALLEST_UNIT * before.unit))
        again = after.restored(after.kept())
        assert again.theta.equal(after.theta) and again.unit == after.unit


def test_a_share_of_the_meta_batches_begins_with_trained_parameters():
    steps = [draw_steps(0.3, 1000, np.random.default_rng(number)) for number in range(1000)]
    assert sum(map(bool, steps)) == pytest.approx(300, abs=45)  # three standard deviations
    assert min(filter(None, steps)) == pytest.approx(20, abs=2) and max(steps) == 1000
    data = suite(trained_starts=0.5)
    begun = [not torch.equal(batch.theta, batch.episodes.theta) for batch in batches(data)]
    assert 0 < sum(begun) < len(begun)
    assert torch.equal(*(data.episodes("val", range(8)).theta for data in (data, suite())))


def test_a_trained_start_is_compared_with_its_own_loss(tmp_path):
    steps, tasks = np.array([1, STEPS]), list(suite().tasks)
    table = {"tasks": tasks, "steps": steps, "losses": np.full((len(tasks), 2), 0.1), "data": suite().description}
    np.savez(tmp_path / "table.npz", **table)
    for share, expected in ((0.0, 0.1), (1.0, 1.0)):
        batch = batches(suite(trained_starts=share, reference=str(tmp_path / "table.npz")))[0]
        torch.testing.assert_close(batch.reference(0, STEPS), torch.full((STEPS, 4), expected))


def test_processes_share_the_batches_of_one():
    alone = batches(suite(random_scaling=1.0), epoch=2)
    shared = [batches(suite(random_scaling=1.0), processes=2, rank=rank, epoch=2) for rank in (0, 1)]
    assert len({batch.episodes.numbers.min().item() for batch in alone}) == 6
    for number, expected in enumerate(alone):
        batch = shared[number % 2][number // 2]
        assert torch.equal(batch.theta, expected.theta) and torch.equal(batch.scale, expected.scale)
        assert torch.equal(batch.value_and_grad(batch.theta, 1)[1], expected.value_and_grad(expected.theta, 1)[1])


def test_a_loader_does_not_resume_inside_an_epoch_of_other_processes():
    two, one = suite(), suite()
    two.trainer, one.trainer = (SimpleNamespace(world_size=n, global_rank=0, current_epoch=0) for n in (2, 1))
    loader, other = two.train_dataloader(), one.train_dataloader()
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(InvalidInputError, match=r"gives 1 in all, but .* inside an epoch that 2 shared"):
        other.load_state_dict(loader.state_dict())
    other.load_state_dict(loader.state_dict() | {"position": 0})
    two.train_dataloader().load_state_dict(loader.state_dict())


def test_an_item_of_a_loader_stands_for_a_batch():
    data = suite()
    loaders = data.train_dataloader(), data.predict_dataloader()
    assert [loader.episodes_per_item for loader in loaders] == [4, data.episodes_per_task]
    assert len(loaders[1].dataset) * data.episodes_per_task == data.test_episodes


def test_a_loader_resumes_with_the_next_batch():
    data = suite()
    every = batches(data)
    loader = data.train_dataloader()
    loader.load_state_dict({"position": 4})
    assert [batch.numbers.tolist() for batch in loader] == [batch.numbers.tolist() for batch in every[4:]]


def test_kept_runs_come_back_to_the_bit_beside_episodes_of_another_task():
    every = batches(suite(random_scaling=1.0))
    kept = every[0]
    like = next(batch for batch in every if batch.layout != kept.layout)
    rule = SGD(0.01)
    packed = kept_runs.pack(kept, start(rule, kept))
    assert sum(tensor.numel() for tensor in packed["episodes"].values()) < 3 * kept.theta.numel()
    again = like.restored(packed["episodes"])
    assert again.layout == kept.layout
    for step in (0, STEPS):
        for a, b in zip(kept.value_and_grad(kept.theta, step), again.value_and_grad(again.theta, step), strict=True):
            assert torch.equal(a, b)


def test_repeated_and_first_episodes_are_the_same():
    episodes = batches(suite(random_scaling=1.0))[0]
    losses = episodes.loss(episodes.theta, 1)
    twice = episodes.repeat(2)
    torch.testing.assert_close(twice.loss(twice.theta, 1), losses.repeat(2))
    assert twice.episodes.numbers.tolist() == episodes.episodes.numbers.repeat(2).tolist()
    two = episodes.first(2)
    torch.testing.assert_close(two.loss(two.theta, 1), losses[:2])


def test_exact_meta_gradients_are_those_of_finite_differences():
    data = suite(random_scaling=1.0)
    episodes = next(batch for batch in batches(data) if "tanh" in data.task("train", int(batch.episodes.numbers[0])))
    episodes = episodes.to("cpu", torch.double)
    rule = LearnedMomentum().double()
    grad = meta_gradient(Exact(), rule, episodes)
    for n in range(2):
        losses = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                rule.phi[n] += change
                losses.append(meta_loss(rule, episodes))
                rule.phi[n] -= change
        torch.testing.assert_close(grad[n], (losses[0] - losses[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_what_data_it_uses_is_said():
    tables = "scikit-learn breast_cancer, scikit-learn digits, scikit-learn iris, scikit-learn linnerud"
    assert suite().variant == f"{tables}, random teachers"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"families": {"a": Part(Teachers(), -1.0)}}, "data.families.a.weight is -1.0"),
        ({"families": {"a": Part(Teachers(), 0.0)}}, "data.families has no family with a weight above 0"),
        ({"families": {"a": Part(Teachers(), batch_factor=0)}}, "data.families.a.batch_factor is 0"),
        ({"families": {"a": Part(WithoutBatches(), batch_factor=2)}}, "WithoutBatches with a batch_factor of 2"),
        ({"episodes_per_task": 0}, "data.episodes_per_task is 0"),
        ({"trained_starts": 1.5}, "data.trained_starts is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(settings, sentence):
    with pytest.raises(InvalidInputError, match=sentence):
        suite(**settings)


def test_batches_of_a_family_can_be_larger():
    large = suite(families={"tables": Part(Tables(), 3.0, batch_factor=4)})
    own = suite(families={"tables": Part(Tables(), 3.0)})
    assert [task.batch_size for task in large.tasks.values()] == [4 * task.batch_size for task in own.tasks.values()]
    assert next(iter(large.tasks)) == "tables: breast_cancer, linear, none, batch size 128"
    assert not large.tasks.keys() & own.tasks.keys()


@pytest.mark.parametrize("family", [Teachers(), Teachers(linear=True)])
def test_teachers_stay_the_same_in_larger_batches(family):
    own, large = family.tasks(seed=0), family.tasks(2, seed=0)
    seeds = [task.source.seed for task in own.values()]
    assert [task.source.seed for task in large.values()] == seeds and len(set(seeds)) == len(seeds)


def test_episodes_of_several_tasks_are_refused():
    with pytest.raises(InvalidInputError, match="belong to 2 tasks"):
        suite(episodes_per_task=2).episodes("val", [0, 2])


def test_the_wide_mixture_has_references_and_nearly_half_of_it_is_new():
    added = {name: row for name, row in families_in("everyday_wide.yaml").items() if "family" in row}
    rows = families_in("everyday.yaml") | families_in("everyday_wide.yaml")
    weights = [row["weight"] for row in rows.values()]
    assert sum(row["weight"] for row in added.values()) == pytest.approx(0.68) and sum(weights) == pytest.approx(1.44)
    assert max(weights) / sum(weights) <= 0.2
    settings = {"families": added, "reference": "everyday.npz", "horizon": 1500}
    wide = make_data({"class_path": "lightning_l2l.optimizees.Suite", "init_args": settings})
    assert len(wide.tasks) == 68


def test_the_shipped_mixture_is_balanced():
    rows = families_in("everyday.yaml")
    weights = {name: row["weight"] for name, row in rows.items()}
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights.values()) <= 0.2
    assert weights["grus"] >= 0.1 and weights["transformers"] >= 0.1
    assert weights["normalised_cnns"] + weights["residual_mlps"] >= 0.1
    held_out = [name for name, weight in weights.items() if not weight]
    assert held_out == ["lstms", "row_transformers", "completions", "batch_normalised_mlps"]
    settings = [row["family"] for row in rows.values()]
    assert all(settings.count(one) == 1 for one in settings)
