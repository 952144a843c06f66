"""Problems small enough for a test."""

import yaml


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
