"""Problems small enough for a test."""

import yaml

from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.evaluation.suite.problems import Problem


def problem(seed: int = 5, **settings) -> dict:
    """An MLP on scikit-learn's wine table."""
    network = {
        "class_path": "lightning_l2l.optimizees.MLP",
        "init_args": {"inputs": 13, "hidden_sizes": [8], "classes": 3, "activation": "relu"},
    }
    return {
        "class_path": "lightning_l2l.optimizees.ModuleTraining",
        "init_args": {
            "network": network,
            "loss": {"class_path": "torch.nn.CrossEntropyLoss"},
            "source": {"class_path": "lightning_l2l.optimizees.Table", "init_args": {"name": "wine"}},
            "batch_size": 16,
            "seed": seed,
            **settings,
        },
    }


def missing() -> dict:
    """A problem whose data is nowhere."""
    return problem(source={"class_path": "lightning_l2l.optimizees.Images", "init_args": {"name": "nowhere"}})


def write(name: str, problems: dict, **others) -> str:
    """A file of problems in the working directory."""
    with open(f"{name}_problems.yaml", "w") as file:
        yaml.safe_dump({"problems": problems, **others}, file)
    return f"{name}_problems.yaml"


def available(problems: list[Problem]) -> tuple[list[Problem], dict[str, str]]:
    """Loads the data of each problem.

    Returns:
        Those whose data is there or could be fetched, and why the others are skipped, by name.
    """
    there, skipped = [], {}
    for problem in problems:
        try:
            problem.data.prepare_data()
            problem.data.setup("test")
            there.append(problem)
        except InvalidInputError as error:
            skipped[problem.name] = first_line(error)
    return there, skipped
