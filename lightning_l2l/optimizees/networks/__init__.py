"""Networks to be trained."""
