"""mean_rule.py OUT RULE RULE...: the mean of several rules' weights."""

import sys

from lightning_l2l.rules.files import data_of, read_rule, write_rule

out, *files = sys.argv[1:]
read = [read_rule(f) for f in files]
write_rule({k: sum(t[k] for _, t in read) / len(read) for k in read[0][1]}, out, read[0][0], data_of(files[0]))
