"""A benchmark of optimizers: everyday problems, plain training loops, rivals, tuning and scores."""
