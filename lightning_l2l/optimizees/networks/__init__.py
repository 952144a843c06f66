"""Networks to train, and VGG16's frozen features."""
