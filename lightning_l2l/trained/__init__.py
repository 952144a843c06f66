"""What training leaves behind: checkpoints, and rules exported from them."""
