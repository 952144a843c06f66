"""The coordinatewise LSTM and the ways of running it."""
