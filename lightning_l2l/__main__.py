import os

# Between two operations OpenMP's threads spin a while, on a core that the LSTM's threads could use; torch reads this
# when it is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lightning_l2l.cli import main

main()
