"""A controller of Adam: a small network that sets learning rate, directions and smoothing for each parameter tensor."""
