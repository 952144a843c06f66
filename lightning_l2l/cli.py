"""The command line: python -m lightning_l2l {fit,validate,test,predict} --config NAME.yaml, or export."""

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, Namespace
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.cli import (
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
)
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_l2l.callbacks import (
    BestCheckpoint,
    HyperparameterMetrics,
    Interrupt,
    LastCheckpoint,
    MetaProgressBar,
)
from lightning_l2l.checkpoint import (
    PRETRAINED,
    check_same_settings,
    find_checkpoint,
    plain,
    read_checkpoint,
    read_pretrained,
    without_ckpt_path,
)
from lightning_l2l.comparison_callback import Comparison, comparison_of
from lightning_l2l.errors import InvalidInputError
from lightning_l2l.export import export
from lightning_l2l.meta_learner import MetaLearner
from lightning_l2l.optimizees import EpisodeDataModule
from lightning_l2l.pictures import Pictures
from lightning_l2l.predictions import Predictions

PACKAGE = Path(__file__).parent
CONFIG_FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")  # in an installed wheel, in a checkout


class ConfigByName(ActionConfigFile):
    """--config: a path, or the bare name of one of the package's own configs."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolves the name and applies the file; variants are merged with those before, or removed by {}."""
        before = cfg.get("variants")
        super().__call__(parser, cfg, str(find_config(values)), option_string)
        now = cfg.get("variants")
        if isinstance(before, dict) and isinstance(now, dict) and now:  # a dict would replace the whole of the other
            cfg.variants = merge(before, now)


def find_config(name: str) -> Path:
    """Returns the file that --config means.

    Raises:
        InvalidInputError: there is none; the message lists those there are.
    """
    for folder in (Path(), *CONFIG_FOLDERS):
        if (folder / name).is_file() and (folder == Path() or "/" not in name):
            return folder / name
    known = sorted({path.name for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")})
    raise InvalidInputError(
        f"--config is {name}, which is neither a file nor one of the package's own: choose {', '.join(known)}."
    )


class OneSentenceParser(LightningArgumentParser):
    """Says what is wrong in one sentence, without the usage that would bury it."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raises ``InvalidInputError``, which ``main`` prints."""
        raise InvalidInputError(" ".join(message.split())) from ex


class LearningToLearnCLI(LightningCLI):
    """LightningCLI with this package's callbacks, defaults and ways of naming configs and checkpoints."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.pretrained: dict[str, Any] | None = None
        super().__init__(
            MetaLearner,
            EpisodeDataModule,
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
                "callbacks": [
                    LastCheckpoint(),
                    Interrupt(),
                    MetaProgressBar(),
                    HyperparameterMetrics(),
                ],
            },
            args=arguments,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Makes --config find configs by name."""
        kwargs["description"] = (
            "Learns an update rule and races it against tuned baselines. A further command, export, makes a file of a "
            "checkpoint's rule: see export --help."
        )
        parser = OneSentenceParser(**kwargs, allow_abbrev=False)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigByName,
            help="A config's path, or the name of a shipped one.",
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands there are."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] | {"weights_only"} for name in ("fit", "validate", "test", "predict")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks that have settings."""
        parser.add_argument(
            "--variants",
            type=dict[str, dict[str, Any]],
            default={},
            help="Further races of a test: a name for each, with the settings of data that it changes.",
        )
        parser.add_lightning_class_args(Comparison, "comparison")
        parser.add_lightning_class_args(Pictures, "pictures")
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val/meta_loss",
                "early_stopping.patience": 20,
                "early_stopping.check_on_train_epoch_end": False,  # a resumed epoch may have been validated before
            }
        )

    def before_instantiate_classes(self) -> None:
        """Finds the checkpoint, and goes on in its run's folder."""
        config = self.config[self.subcommand]
        if self.subcommand == "test":
            config.verbose = False  # the race's table says it all
        if self.subcommand == "predict":
            config.return_predictions = False  # they are written as they come
        runs = runs_folder(config.trainer.logger)
        if config.ckpt_path is None:
            if self.subcommand != "fit":
                raise InvalidInputError(
                    f"--ckpt_path is missing, but {self.subcommand} needs a trained rule: give best, last or a path."
                )
        elif config.ckpt_path.startswith(PRETRAINED):
            self.pretrained = read_pretrained(config.ckpt_path)
            check_same_settings(self.pretrained, config.model, config.data, resumes=False)
        else:
            path = find_checkpoint(config.ckpt_path, runs).resolve()
            config.ckpt_path = str(path)
            resumes = self.subcommand == "fit"
            check_same_settings(read_checkpoint(path, resumes), config.model, config.data, resumes)
            if runs and path.parent.name == "checkpoints":
                runs, config.trainer.logger.init_args.version = (
                    path.parents[2],
                    path.parents[1].name,
                )
        if runs:  # callbacks remember absolute paths, so that the same run is the same from any folder
            (
                config.trainer.logger.init_args.save_dir,
                config.trainer.logger.init_args.name,
            ) = str(runs.parent), runs.name

    def after_instantiate_classes(self) -> None:
        """Adds the rule's and the data's settings to the hyperparameters, for checkpoints and TensorBoard."""
        config = self.config[self.subcommand]
        if self.pretrained is not None:
            self.model.check_shapes(self.pretrained["state_dict"], config.ckpt_path)
            self.model.load_state_dict(self.pretrained["state_dict"])
            self.config_init[self.subcommand].ckpt_path = None  # the Trainer has nothing to load
        self.model.save_hyperparameters({"rule": plain(config.model.rule)})
        self.datamodule.save_hyperparameters({"data": plain(config.data)})
        # now, so that what is wrong with one is said before the first race has taken its time
        self.variants = {name: self._variant(name, changes) for name, changes in config.variants.items()}

    def _variant(self, name: str, changes: dict[str, Any]) -> EpisodeDataModule:
        """Makes the DataModule of a variant: this one's settings with some changed."""
        parser = OneSentenceParser()
        parser.add_subclass_arguments(EpisodeDataModule, "data", required=True)
        settings = plain(self.config[self.subcommand].data)
        try:
            given = parser.parse_object({"data": merge(settings, {"init_args": changes})})
            datamodule = parser.instantiate_classes(given).data
        except Exception as error:
            if not (reason := _invalid_input(error)):
                raise
            raise InvalidInputError(f"variants.{name}: {reason}") from None
        datamodule.variant_name = name
        return datamodule

    def _parse_ckpt_path(self) -> None:
        """Leaves the config as given: Lightning would let the checkpoint's settings silently beat it."""

    def before_test(self) -> None:
        """Tries each variant before the first race, and tells the comparison how many there will be."""
        comparison_of(self.trainer).races_to_come = len(self.variants)
        for name, datamodule in self.variants.items():
            try:
                datamodule.prepare_data()
                datamodule.setup("test")
                self.model.check(datamodule)
            except InvalidInputError as error:
                raise InvalidInputError(f"variants.{name}: {error}") from None

    def after_test(self) -> None:
        """Races on the variants, with the rule that the test has loaded."""
        for datamodule in self.variants.values():
            comparison_of(self.trainer).races_to_come -= 1
            self.trainer.test(self.model, datamodule=datamodule, verbose=False)

    def after_fit(self) -> None:
        """Says how to go on."""
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        if self.trainer.is_global_zero and best.best_model_path:
            flags = shlex.join(without_ckpt_path(self.arguments[1:]))
            print("Race the learned rule with the lowest val/meta_loss against the tuned baselines with")
            print(f"  python -m lightning_l2l test {flags} --ckpt_path {os.path.relpath(best.best_model_path)}")


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Returns settings with some changed, at any depth; another class comes without the settings of the one before."""
    merged = dict(settings)
    for key, change in changes.items():
        into = merged.get(key)
        if isinstance(into, dict) and isinstance(change, dict) and "class_path" not in change:
            merged[key] = merge(into, change)
        else:
            merged[key] = change
    return merged


class SaveStageConfig(SaveConfigCallback):
    """Keeps the settings of each command in the run's folder: config.yaml of fit, test.yaml of test."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Writes the file."""
        self.config_filename = "config.yaml" if stage == "fit" else f"{trainer.state.fn.value}.yaml"
        super().setup(trainer, pl_module, stage)


def runs_folder(logger: Any) -> Path | None:
    """Where runs of this name are kept; None without a TensorBoardLogger."""
    if not isinstance(logger, Namespace) or not str(logger.get("class_path", "")).endswith("TensorBoardLogger"):
        return None
    return Path(logger.init_args.save_dir).resolve() / (logger.init_args.name or "lightning_logs")


def main(args: list[str] | None = None) -> None:
    """Runs the command line; bad input ends with one sentence and exit status 2."""
    arguments = sys.argv[1:] if args is None else args
    arguments = ["--print_config=comments" if a == "--print_config" else a for a in arguments]
    quieten()
    show_log()
    try:
        if arguments[:1] == ["export"]:
            run_export(arguments[1:])
        else:
            LearningToLearnCLI(arguments)
    except Exception as error:
        invalid = _invalid_input(error)
        if invalid is None:
            raise
        print(f"error: {invalid}", file=sys.stderr)
        sys.exit(2)


def run_export(arguments: list[str]) -> None:
    """Runs the command export, which needs no config."""
    parser = OneSentenceParser(
        prog="python -m lightning_l2l export", description=(export.__doc__ or "").split("\n\n")[0]
    )
    parser.add_function_arguments(export, as_group=False)
    export(**vars(parser.parse_args(arguments)))


def _invalid_input(error: BaseException | None) -> BaseException | None:
    """Finds what a user can fix among the errors that led to this: the parser wraps those of constructors."""
    found: BaseException | None = None
    while error is not None:
        found = error if isinstance(error, InvalidInputError | MisconfigurationException) else found
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def quieten() -> None:
    """Silences notices that a user can do nothing about."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    warnings.filterwarnings("ignore", ".*overridden `on_after_batch_transfer`.*")
    warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", ".*WeightAveraging callback, but loading a checkpoint outside.*")
    warnings.filterwarnings("ignore", ".*was deprecated in v4.*")  # of jsonargparse, by Lightning
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip" not in record.getMessage()
    )


def show_log() -> None:
    """Prints what the package itself has to say, such as how long it compiled."""
    log = logging.getLogger("lightning_l2l")
    if not log.handlers and os.environ.get("LOCAL_RANK", "0") == "0":
        log.setLevel(logging.INFO)
        log.addHandler(logging.StreamHandler())
