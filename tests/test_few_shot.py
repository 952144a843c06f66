"""Few-shot episodes: their tasks, losses and accuracies."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import fit, results, tiny
from conftest import SHARED, skip
from few_shot_images import few_shot, network, write
from learn2learn_problem import our_gradient
from torch import nn
from torch.nn import functional as F

from lightning_l2l import extras
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.learners import Stage
from lightning_l2l.learners.stages import Stages
from lightning_l2l.meta_losses import WeightedSum
from lightning_l2l.optimizees import Conv4, FewShot, Quadratics
from lightning_l2l.optimizees import few_shot as few_shot_module
from lightning_l2l.optimizees.sources.image_classes import load_image_classes, prepare_omniglot, split_classes
from lightning_l2l.rules import SGD, LearnedStart
from lightning_l2l.unroll import evaluate, learning_curves, optimize

pytest.importorskip("learn2learn", reason="learn2learn is an extra: uv sync --extra learn2learn")
from lightning_l2l.cli import main
from lightning_l2l.learners.learn2learn_maml import Learn2LearnMAML

SPLITS = ("train", "val", "tune", "test")


def labels_of(data: FewShot, split: str, count: int = 20) -> torch.Tensor:
    """The labels of each task's images, [count, ways, shots + queries]."""
    episodes = data.episodes(split, range(count))
    return episodes.examples.labels[episodes.indices]


def test_an_episode_is_a_number():
    data, again = few_shot(), few_shot()
    apart = [data.episodes("test", [number]) for number in (5, 2)]
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    together = again.episodes("test", [2, 9, 5])
    for one, place in zip(apart, (2, 0), strict=True):
        assert torch.equal(one.indices[0], together.indices[place])
        assert torch.equal(one.theta[0], together.theta[place])
    tasks = [data.episodes(split, range(2)).indices for split in ("val", "tune")]
    assert not torch.equal(*tasks) and not torch.equal(*tasks[0])
    assert not torch.equal(few_shot(seed=1).episodes("val", range(2)).indices, tasks[0])


def test_two_processes_share_the_tasks_of_one():
    def tasks(batch_size: int, processes: int, rank: int) -> list[torch.Tensor]:
        data = few_shot(episodes_per_batch=batch_size, train_episodes=4)
        data.trainer = SimpleNamespace(world_size=processes, global_rank=rank, current_epoch=3)
        return [task for batch in data.train_dataloader() for task in batch.indices]

    alone, first, second = tasks(4, 1, 0), tasks(2, 2, 0), tasks(2, 2, 1)
    assert all(map(torch.equal, alone, [first[0], second[0], first[1], second[1]]))
    assert not any(torch.equal(a, b) for a in first for b in second)


def test_no_network_and_no_start_changes_the_tasks():
    tasks = few_shot().episodes("test", range(3)).indices
    for settings in ({"network": Conv4(3, 2, image_size=16)}, {"init_std": 0.1}):
        assert torch.equal(few_shot(**settings).episodes("test", range(3)).indices, tasks)


def test_drawing_leaves_all_generators_as_they_were():
    data = few_shot()
    data.setup()
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    data.episodes("train", range(3))
    assert random.getstate() == before[0] and str(np.random.get_state()) == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("rotations", ["none", "train", "all"])
def test_splits_have_classes_of_their_own(rotations):
    data = few_shot(rotations=rotations)
    seen = {}
    for split in SPLITS:
        labels = labels_of(data, split, 100)
        assert torch.equal(labels, labels[:, :, :1].expand_as(labels))  # one class a row
        assert all(len(task.unique()) == 3 for task in labels[:, :, 0])
        seen[split] = set(labels.unique().tolist())
    assert seen["val"] == seen["tune"]
    assert not seen["train"] & seen["val"] and not seen["train"] & seen["test"] and not seen["val"] & seen["test"]
    turns = {"none": (1, 1), "train": (4, 1), "all": (4, 4)}[rotations]
    assert (len(seen["train"]), len(seen["test"])) == (10 * turns[0], 4 * turns[1])


def test_support_and_query_sets_share_no_image():
    data = few_shot()
    for split in SPLITS:
        for task in data.episodes(split, range(20)).indices:
            assert task.unique().numel() == task.numel()
    theta = (episodes := data.episodes("test", [0])).theta
    sets = [episodes.minibatch(theta, step)[0][0] for step in (0, 1, 2, 3)]
    assert [len(images) for images in sets] == [6, 6, 6, 9]
    assert torch.equal(sets[0], sets[2])
    assert not any(torch.equal(a, b) for a in sets[0] for b in sets[3])


def test_rotated_images_are_turned_ones_under_labels_of_their_own():
    plain, data = few_shot(rotations="none"), few_shot()
    plain.setup()
    data.setup()
    rows = plain.examples.part("train")
    images, labels = data.examples.images[data.examples.part("train")], data.examples.labels
    for turn, own in enumerate(images.split(len(rows))):
        assert torch.equal(own, plain.examples.images[rows].rot90(turn, (2, 3)))
    for part in ("val", "test"):
        given, turned = ((d.examples.images[d.examples.part(part)]) for d in (plain, data))
        assert torch.equal(given, turned)
    assert len(labels.unique()) == 48


def test_the_loss_at_the_horizon_is_the_query_sets():
    data = few_shot()
    episodes = data.episodes("test", range(2))
    curves = learning_curves(SGD(0.1), episodes, 3)
    for number, curve in enumerate(curves):
        theta, images = episodes.theta[number], episodes.examples.images[episodes.indices[number]] / 255
        support, query = images[:, :2].flatten(0, 1), images[:, 2:].flatten(0, 1)
        shapes = [p.shape for p in data.network.parameters()]
        for step in range(4):
            theta = theta.detach().requires_grad_()
            parts = [p.view(s) for p, s in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True)]
            pixels = support if step < 3 else query
            hidden = F.batch_norm(F.conv2d(pixels, *parts[:2], stride=4), None, None, *parts[2:4], training=True)
            logits = F.linear(hidden.relu().flatten(1), *parts[4:])
            loss = F.cross_entropy(logits, torch.arange(3).repeat_interleave(len(pixels) // 3))
            assert loss.item() == pytest.approx(curve[step].item(), rel=1e-4)
            (grad,) = torch.autograd.grad(loss, theta)
            theta = theta - 0.1 * grad


def test_accuracy_is_the_share_of_the_query_set_that_is_right():
    data = few_shot(init_std=0.5)
    episodes = data.episodes("test", range(4))
    theta = torch.cat([episodes.theta[:3], torch.full_like(episodes.theta[:1], torch.nan)])
    accuracy = episodes.accuracy(theta)
    assert accuracy.shape == (4,) and accuracy[3] == 0
    for number in range(3):
        images = episodes.minibatch(theta, 3)[0][number]
        torch.nn.utils.vector_to_parameters(theta[number], data.network.parameters())
        right = data.network(images).argmax(1) == torch.arange(3).repeat_interleave(3)
        assert accuracy[number].item() == pytest.approx(right.double().mean().item())
    easy = few_shot(horizon=30, network=Conv4(3, 8, image_size=16)).episodes("test", range(8))
    assert easy.accuracy(optimize(SGD(0.1), easy, 30)[0]).mean() > 0.9


def test_the_query_losss_gradient_is_left_out_where_a_graph_is_built():
    episodes = few_shot().episodes("test", range(2))
    theta = episodes.theta.clone().requires_grad_()
    losses, grad = episodes.value_and_grad(theta, 3)
    (through,) = torch.autograd.grad(losses.sum(), theta)
    assert grad.isnan().all()
    with torch.no_grad():
        torch.testing.assert_close(episodes.value_and_grad(theta, 3), (losses.detach(), through))


def test_sources_are_read_alike(tmp_path):
    from PIL import Image

    data = few_shot(rotations="none")
    data.setup()
    with np.load("classes.npz") as kept:
        labelled = list(zip(kept["labels"], kept["images"], strict=True))
    for row, (label, image) in enumerate(labelled):
        folder = tmp_path / "folder" / f"{label:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{row:03d}.png")
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 3))
    from_folder = few_shot(source=str(tmp_path / "folder"), rotations="none", network=net)
    from_folder.setup()
    assert torch.equal(from_folder.examples.images, data.examples.images.expand(-1, 3, -1, -1))
    assert torch.equal(from_folder.examples.labels, data.examples.labels)
    inverted = few_shot(rotations="none", invert=True)
    inverted.setup()
    assert torch.equal(inverted.examples.images, 255 - data.examples.images)


@pytest.fixture
def omniglot(monkeypatch, tmp_path) -> list:
    """Two images of each of five characters in place of Omniglot, listed backwards; what was asked of it."""
    from PIL import Image
    from torchvision import datasets

    asked = []
    parts = {True: ("Tagalog/1", "Korean/1", "Korean/2"), False: ("Latin/1", "Latin/2")}
    for number, character in enumerate((*parts[True], *parts[False])):
        (tmp_path / character).mkdir(parents=True)
        for copy in range(2):
            image = Image.fromarray(np.full((105, 105), 40 * number, np.uint8))
            image.save(tmp_path / character / f"{copy}.png")

    def characters(root, background, download, loader):
        asked.append((root, download))
        folders = enumerate(parts[background])
        return [(loader(file), label) for label, name in folders for file in sorted((tmp_path / name).iterdir())][::-1]

    monkeypatch.setattr(datasets, "Omniglot", characters)
    monkeypatch.setattr("lightning_l2l.optimizees.sources.image_classes.IMAGES", 10)
    return asked


def test_omniglot_is_fetched_and_shrunk_once(omniglot):
    for _ in range(2):
        with np.load(prepare_omniglot(Path("."))) as kept:
            assert kept["images"].shape == (10, 28, 28)
            assert kept["images"][:, 0, 0].tolist() == [40, 40, 80, 80, 120, 120, 160, 160, 0, 0]  # in order of names
            assert kept["labels"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
            assert kept["alphabet"].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert omniglot == [(".", True)] * 2


def test_a_part_of_omniglot_is_not_taken_for_all(omniglot, tmp_path):
    (tmp_path / "Korean/2/1.png").unlink()
    with pytest.raises(InvalidInputError, match="has 9 of its 10 images: remove that folder"):
        prepare_omniglot(Path("."))
    assert not Path("omniglot28.npz").exists()


def test_labels_that_are_not_chosen_are_no_class():
    write()
    images = load_image_classes(Path("classes.npz"))
    chosen = images.relabelled(sorted(set(images.labels.tolist()))[:12])
    assert len(split_classes(chosen, (6, 3, 3)).labels.unique()) == 12
    with pytest.raises(InvalidInputError, match="has 12 classes"):
        split_classes(chosen, (7, 3, 3))


def test_real_omniglot():
    if not (SHARED / "omniglot28.npz").is_file():
        skip("Omniglot is not at ../shared/data, and tests do not download")
    data = FewShot(Conv4(width=4), root=str(SHARED), classes=(1100, 100, 423), rotations="none", invert=True, horizon=3)
    episodes = data.episodes("test", range(20))
    assert len(data.examples) == 32_460 and episodes.indices.shape == (20, 5, 16)
    assert data.examples.images.float().mean() < 64  # ink is bright
    assert data.batching == "stacked"
    curves = learning_curves(SGD(0.4), episodes, 3)
    assert curves[:, 3].mean() < curves[:, 0].mean()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ways": 1}, "data.ways is 1"),
        ({"shots": 0}, "data.shots is 0"),
        ({"queries": 5}, "data.shots and data.queries are 2 and 5, but a class of classes.npz has 6"),
        ({"ways": 5}, "data.ways is 5, but val has 4 classes"),
        ({"classes": (10, 4, 5)}, "has 18 classes: give three positive numbers"),
        ({"classes": (10, 4)}, "data.classes is [10, 4], but classes.npz has 18 classes: give three"),
        ({"rotations": "some"}, "data.rotations is some: give one of none, train, all"),
        ({"network": network(4)}, "data.network makes (6, 4) of 6 images, but data.ways is 3"),
        ({"source": "classes.txt"}, "data.source is classes.txt: give Omniglot"),
        ({"source": "nowhere.npz"}, "which is not there"),
    ],
)
def test_bad_settings_get_one_sentence(settings, words):
    with pytest.raises(InvalidInputError) as error:
        few_shot(**settings).setup()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": np.arange(7)}, "images has shape (108, 16, 16) and labels (7,)"),
        ({"labels": np.ones(108)}, "one integer label each"),
        ({"images": np.ones((108, 16, 16), np.int32)}, "images is int32"),
        ({"labels": np.arange(108) - 1}, "labels has labels from -1 to 106: number them from 0"),
        ({"images": np.zeros((108, 16, 17), np.uint8)}, "16 × 17: set it to none"),
    ],
)
def test_bad_files_get_one_sentence(changes, words):
    with pytest.raises(InvalidInputError) as error:
        few_shot(source=write("bad.npz", **changes)).setup()
    assert words in str(error.value)


def test_images_that_are_not_turned_need_not_be_square():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16 * 17, 3))
    data = few_shot(source=write("wide.npz", images=np.ones((108, 16, 17), np.uint8)), rotations="none", network=net)
    data.setup()
    assert data.examples.images.shape[-2:] == (16, 17)


def test_too_few_classes_for_three_parts_are_refused():
    labels = np.arange(108) // 27
    with pytest.raises(InvalidInputError, match=r"data.classes is null, but few.npz has 4 classes"):
        few_shot(source=write("few.npz", labels=labels), classes=None).setup()


def test_a_folder_of_classes_is_asked_for_no_train_and_test():
    Path("empty").mkdir()
    with pytest.raises(InvalidInputError, match="give a folder with one folder a label"):
        few_shot(source="empty").setup()


def test_many_images_give_the_same_losses_network_by_network(monkeypatch):
    episodes = few_shot().episodes("train", range(3)).to("cpu", torch.float64)
    together = [episodes.value_and_grad(episodes.theta, step) for step in (0, 3)]
    monkeypatch.setattr(few_shot_module, "STACKED", 0)
    apart = [episodes.value_and_grad(episodes.theta, step) for step in (0, 3)]
    torch.testing.assert_close(apart, together, rtol=1e-10, atol=1e-12)


def test_a_run_that_does_not_reach_the_query_sets_is_refused():
    data = few_shot()
    for rows in ([Stage(horizon=2)], [Stage(), Stage(horizon=(1, 3))]):
        with pytest.raises(InvalidInputError, match="only after 3 steps"):
            Stages(rows, 1, WeightedSum()).check(data)
    Stages([Stage(unroll=3)], 1, WeightedSum("last")).check(data)


def test_without_learn2learn_a_sentence_gives_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)  # which makes its import fail
    with pytest.raises(InvalidInputError, match="uv sync --extra learn2learn") as error:
        few_shot().setup()
    assert "data.class_path FewShot" in str(error.value)
    monkeypatch.undo()
    assert extras.learn2learn("it").__name__ == "learn2learn"


def test_learn2learns_own_maml_trains_and_races_ours():
    flags = "--comparison.baselines=[]", "--data.horizon=2"
    fit(*flags, "--model.unroll=2", config="omniglot_maml.yaml")
    fit(*flags, config="omniglot_learn2learn.yaml")
    runs = Path("runs")
    rival = f"--comparison.rivals={runs}/omniglot_maml/version_0/checkpoints/best.ckpt"
    main(tiny("test", *flags, "--ckpt_path=best", rival, config="omniglot_learn2learn.yaml"))
    theirs, ours = results(runs / "omniglot_learn2learn/version_0")
    assert (theirs["rule"], ours["kind"]) == ("learn2learn's MAML version 0", "rival")
    for row in (theirs, ours):
        assert 0 <= float(row["accuracy"]) <= 1 and float(row["last10"]) > 0


def test_learn2learns_maml_runs_as_the_learned_start_does():
    data = few_shot(network=Conv4(3, 2, image_size=16))
    learner = Learn2LearnMAML(Conv4(3, 2, image_size=16), 0.3).double()
    start = torch.nn.utils.parameters_to_vector(learner.maml.model.module.parameters()).detach()
    rule = LearnedStart(SGD(0.3)).double()
    rule.bind((episodes := data.episodes("test", range(3)).to("cpu", torch.float64)).layout)
    rule.theta.data = start
    curves, accuracy = evaluate(rule, episodes, 3)
    learner.trainer = SimpleNamespace(world_size=1, testing=True, test_dataloaders=None)
    learner.log = learner.log_dict = lambda *_, **__: None
    found = learner.test_step(episodes, 0)
    torch.testing.assert_close(found["curves"], curves, rtol=1e-10, atol=0)
    torch.testing.assert_close(found["accuracy"].double(), accuracy)
    loss = learner.training_step(episodes, 0)
    torch.testing.assert_close(loss.detach(), curves[:, -1].mean())
    theirs = torch.autograd.grad(loss, list(learner.maml.model.module.parameters()))
    (ours,) = our_gradient(rule, episodes, first_order=False)
    torch.testing.assert_close(ours, torch.cat([part.flatten() for part in theirs]), rtol=0, atol=1e-12)


def test_the_grid_races_at_more_steps_and_shots():
    fit("--comparison.baselines=[]", config="omniglot_maml.yaml")
    flags = "--comparison.baselines=[]", "--config=omniglot_grid.yaml", "--data.queries=1", "--ckpt_path=best"
    main(tiny("test", *flags, config="omniglot_maml.yaml"))
    names = [row["variant"] for row in results("runs/omniglot_maml/version_0")]
    assert names[1:] == ["3 steps", "10 steps", "5 shots", "5 shots, 3 steps", "5 shots, 10 steps"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Quadratics(), "data is Quadratics"),
        (lambda: few_shot(relative_loss=True), "without random_scaling, relative_loss and companion"),
        (lambda: few_shot(network=Conv4(3, 2, image_size=16)), "model.network has 28,"),
    ],
)
def test_learn2learns_maml_refuses_other_data(data, words):
    with pytest.raises(InvalidInputError, match=words):
        Learn2LearnMAML(Conv4(3, 32)).check(data())
