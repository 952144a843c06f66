"""The coordinatewise LSTM and the ways to run it."""
