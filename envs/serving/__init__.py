"""The calibrated GPU serving model; it knows nothing of policies or of Gymnasium."""
