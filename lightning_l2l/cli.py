"""The command line: python -m lightning_l2l {fit,validate,test,predict,seeds,reference,report,export}."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from lightning_l2l import reference, seeds
from lightning_l2l.callbacks import BestCheckpoint, SaveStageConfig, own_callbacks
from lightning_l2l.config_files import LEARNER, ConfigByName, check_sections, find_config, given, refuse_old_keys
from lightning_l2l.errors import InvalidInputError, first_line
from lightning_l2l.evaluation import report
from lightning_l2l.evaluation.comparison import Comparison, comparison_of
from lightning_l2l.evaluation.pictures import Pictures
from lightning_l2l.evaluation.predictions import Predictions
from lightning_l2l.evaluation.suite.benchmark import Benchmark
from lightning_l2l.interrupts import terminable
from lightning_l2l.learners import MetaLearner
from lightning_l2l.learners import base as learners
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.parser import CKPT_PATH, OneSentenceParser
from lightning_l2l.rules.shaped import take_shapes
from lightning_l2l.terminal import PROGRAM, ending, quieten, show_log
from lightning_l2l.trained import export
from lightning_l2l.trained.checkpoint import (
    PRETRAINED,
    check_same_settings,
    check_same_shapes,
    plain,
    read_checkpoint,
    read_pretrained,
    without_ckpt_path,
)
from lightning_l2l.trained.resuming import SameData
from lightning_l2l.trained.runs import continue_run, find_checkpoint, runs_folder
from lightning_l2l.variants import make_variants

COMMANDS = {
    "fit": "Meta-trains an update rule, and keeps the best and the last checkpoint in the run's folder.",
    "validate": "Runs the validation episodes with a trained rule.",
    "test": "Races a trained rule against tuned baselines on fresh episodes.",
    "predict": "Runs a trained rule and writes the optimized parameters to files.",
    "seeds": "Trains a config on several meta-seeds, and races what they learned on the same episodes.",
    "reference": "Runs Adam on every task of a suite, and writes a table of its losses for meta-losses.",
    "report": "Writes Markdown tables from results.csv files.",
    "export": "Exports a checkpoint's rule to a file, with a model card.",
}


class LearningToLearnCLI(LightningCLI):
    """LightningCLI with this package's callbacks, defaults and ways of naming configs and checkpoints."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.given = given(arguments)
        refuse_old_keys(self.given)
        self.checkpoint: dict[str, Any] | None = None
        super().__init__(
            LightningModule,
            EpisodeDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=SaveStageConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={
                "log_every_n_steps": 1,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "inference_mode": False,  # optimizees need autograd in validation and test, too
                "devices": 1,  # more would change how many meta-steps a config takes
                "callbacks": own_callbacks(),
            },
            parser_kwargs={"prog": PROGRAM},
            args=arguments,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes --config find configs by name."""
        parser = OneSentenceParser(**kwargs, allow_abbrev=False)
        parser.replaced = self.given.replaced
        parser.add_argument(
            "-c", "--config", action=ConfigByName, help="A config's path, or the name of a shipped one."
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands that a Trainer runs."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] | {"weights_only"} for name in COMMANDS if name in commands}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """Adds all commands; only the one that is run gets its arguments, since building them is slow."""
        parser.description = "Learns an update rule and races it against tuned baselines."
        commands = parser.add_subcommands()
        self._subcommand_parsers = {}
        for name, sentence in COMMANDS.items():
            settings: dict[str, Any] = {"prog": f"{PROGRAM} {name}", "description": sentence}
            if name in self.arguments and name in self.subcommands():
                own = self._prepare_subcommand_parser(Trainer, name, **settings)
                assert isinstance(own, OneSentenceParser)
                own.more_help, own.help_of = learner_help(), {"ckpt_path": CKPT_PATH}
            else:
                own = OneSentenceParser(**settings)
            self._subcommand_parsers[name] = own
            commands.add_subcommand(name, own, help=sentence)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sets the default learner and adds the callbacks that have settings."""
        # the settings of a default class would go over to any other class that has settings of their names
        learner = self.given.learner or LEARNER
        try:
            parser.set_defaults({"model": {"class_path": learner}})
        except Exception as error:
            raise InvalidInputError(
                f"model is {learner}, which is no class path ({first_line(error)}): give one."
            ) from error
        parser.add_argument(
            "--variants",
            type=dict[str, dict],  # data, until make_variants parses them
            default={},
            help="Further races of a test: a name for each, with the data settings that it changes.",
        )
        parser.add_lightning_class_args(Comparison, "comparison")
        parser.add_lightning_class_args(Benchmark, "benchmark")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "early_stopping.monitor": learners.MONITOR,  # replaced by the metric of a learner that names its own
                "early_stopping.patience": 20,
                "early_stopping.check_on_train_epoch_end": False,  # a resumed epoch may have been validated before
                "early_stopping.check_finite": False,  # a diverged episode counts as a validation in vain
            }
        )

    def _set_seed(self) -> None:
        """Seeds all random numbers, after the settings that every command has are checked."""
        check_sections(self.config[self.subcommand])
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint and continues in its run's folder."""
        config = self.config[self.subcommand]
        if self.subcommand == "test":
            config.verbose = False  # the race's table shows everything
        if self.subcommand == "predict":
            config.return_predictions = False  # Predictions writes them batch by batch
        if config.trainer.enable_progress_bar is False:
            self.trainer_defaults["callbacks"] = own_callbacks(progress=False)
        for key in ("problems", "open_problems"):
            if config.benchmark[key]:
                config.benchmark[key] = str(find_config(config.benchmark[key], f"--benchmark.{key}"))
        runs = runs_folder(config.trainer.logger)
        resumes = self.subcommand == "fit" and not str(config.ckpt_path).startswith(PRETRAINED)
        if config.ckpt_path is None:
            if self.subcommand != "fit":
                raise InvalidInputError(
                    f"--ckpt_path is missing, but {self.subcommand} needs a trained rule: give best, last or a path."
                )
        elif config.ckpt_path.startswith(PRETRAINED):
            self.checkpoint = read_pretrained(config.ckpt_path)
        else:
            version = config.trainer.logger.init_args.version if runs else None
            path = find_checkpoint(config.ckpt_path, runs, version).resolve()
            config.ckpt_path = str(path)
            self.checkpoint = read_checkpoint(path, resumes)
            if runs:
                continue_run(path, config.trainer.logger, self.arguments)
                runs = runs_folder(config.trainer.logger)
        if self.checkpoint is not None:
            check_same_settings(self.checkpoint, config, resumes)
        if runs:  # callbacks get absolute paths, so that they know a run again from any working directory
            logger = config.trainer.logger.init_args
            logger.save_dir, logger.name = str(runs.parent), runs.name

    def after_instantiate_classes(self) -> None:
        """Loads a trained rule, and adds all settings to the hyperparameters, for checkpoints and TensorBoard."""
        config = self.config[self.subcommand]
        if self.checkpoint is not None:
            self.same_data.take(self.checkpoint, config.ckpt_path)
            weights = self.checkpoint["state_dict"]
            take_shapes(self.model, weights)
            own = self.model.state_dict()
            if config.ckpt_path.startswith(PRETRAINED):  # a rule alone, whatever else a learner may have
                own = {name: tensor for name, tensor in own.items() if name.startswith("rule.")}
                self.config_init[self.subcommand].ckpt_path = None  # the Trainer has nothing to load
            check_same_shapes(weights, own, config.ckpt_path)
            if config.ckpt_path.startswith(PRETRAINED):
                self.model.load_state_dict(weights, strict=False)
        settings = plain(config.model.get("init_args", {}))
        self.model.save_hyperparameters({"class_path": config.model.class_path, **settings})
        self.datamodule.save_hyperparameters({"data": plain(config.data)})
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BestCheckpoint | EarlyStopping) and callback.monitor == learners.MONITOR:
                callback.monitor = learners.monitor_of(self.model)
        # now, so that an invalid variant is reported before the first race
        self.variants = make_variants(plain(config.data), config.variants)

    @property
    def same_data(self) -> SameData:
        """The callback that compares the data with the checkpoint's."""
        return next(one for one in self.trainer.callbacks if isinstance(one, SameData))  # type: ignore[attr-defined]

    def _parse_ckpt_path(self) -> None:
        """Leaves the config as given: Lightning would let the checkpoint's settings silently override it."""

    def before_test(self) -> None:
        """Checks each variant before the first race, and tells the comparison how many races follow."""
        comparison_of(self.trainer).races_to_come = len(self.variants)
        for name, datamodule in self.variants.items():
            try:
                datamodule.prepare_data()
                datamodule.setup("test")
                learners.check(self.model, datamodule)
                self.same_data.check_test(datamodule)
                comparison_of(self.trainer).check(self.trainer, self.model, datamodule)
            except InvalidInputError as error:
                raise InvalidInputError(f"variants.{name}: {error}") from None

    def after_test(self) -> None:
        """Races on the variants, with the rule that the test has loaded."""
        for datamodule in self.variants.values():
            comparison_of(self.trainer).races_to_come -= 1
            self.trainer.test(self.model, datamodule=datamodule, verbose=False)

    def after_fit(self) -> None:
        """Prints the command that tests the learned rule, or, if there is no race, the one that exports it."""
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        kept = Path(best.best_model_path or Path(str(best.dirpath)) / "last.ckpt")
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not kept.is_file():
            raise InvalidInputError(f"{kept.parent} has no checkpoint, since no meta-batch was run: change trainer.")
        which = f"the lowest {best.monitor}" if best.best_model_path else "the last meta-step"
        if not best.best_model_path:
            print(f"There is no best checkpoint: no validation after a meta-step found a finite {best.monitor}.")
        path, uv = os.path.relpath(kept), "uv run " * ("UV_RUN_RECURSION_DEPTH" in os.environ)
        flags = shlex.join(without_ckpt_path(self.arguments[1:]))
        do, command = f"Test the learned rule with {which}", f"test {flags}"
        if comparison_of(self.trainer).alone and learners.rule_of(self.model):
            do, command = f"Export the learned rule with {which}", "export --output mine.safetensors"
        print(f"{do} with\n  {uv}{PROGRAM} {command} --ckpt_path {path}")


def learner_help() -> str:
    """The settings of the default learner, in the form in which --help shows those of a class."""
    parser = OneSentenceParser(add_help=False, usage=argparse.SUPPRESS, description="")
    parser.add_class_arguments(MetaLearner, "model", fail_untyped=False)
    return f"\nThe model is {LEARNER}, unless --model names another learner:\n\n{parser.format_help().strip()}\n"


def main(args: list[str] | None = None) -> None:
    """Runs the command line; bad input ends with one sentence and exit status 2, a failing disk with 1."""
    arguments = sys.argv[1:] if args is None else args
    arguments = ["--print_config=comments" if a == "--print_config" else a for a in arguments]
    quieten()
    show_log()
    try:
        with terminable():
            dispatch(*(arguments or [""]))
    except Exception as error:
        if (found := ending(error)) is None:
            raise
        sentence, status = found
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(status)


def dispatch(command: str, *flags: str) -> None:
    """Runs a command."""
    if command in (alone := {"export": export.main, "report": report.main}):
        alone[command]([*flags])
    elif command in (over_others := {"reference": reference.main, "seeds": seeds.main}):
        over_others[command]([*flags], run)
    else:
        run([command, *flags])


def run(arguments: list[str]) -> None:
    """Runs one of the Trainer's commands; raises ``InvalidInputError`` for bad input."""
    LearningToLearnCLI(arguments)
