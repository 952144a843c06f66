"""It really learns: a small LSTM on small problems, in about a minute, against baselines tuned as in a real test."""

import csv
from pathlib import Path

from lightning_l2l.cli import main


def test_a_small_lstm_beats_every_tuned_baseline_on_small_quadratics():
    settings = ["--config", "quadratic.yaml", "--data.dimension=4", "--data.horizon=40", "--model.unroll=20"]
    settings += ["--data.episodes_per_batch=64", "--data.train_episodes=1280", "--data.val_episodes=64"]
    settings += ["--model.learning_rate=0.01", "--model.rule.init_args.hidden_size=10", "--trainer.max_epochs=15"]
    main(["fit", *settings, "--trainer.accelerator=cpu"])
    main(["test", *settings, "--trainer.accelerator=cpu", "--ckpt_path=best"])
    with Path("runs/quadratic/version_0/results.csv").open() as file:
        sums = {row["rule"]: float(row["sum"]) for row in csv.DictReader(file)}
    learned = sums.pop("LSTM")
    assert learned < 0.9 * min(sums.values())
