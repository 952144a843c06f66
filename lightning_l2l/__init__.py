"""Learning to learn by gradient descent by gradient descent (arXiv:1606.04474), as a PyTorch Lightning template."""
