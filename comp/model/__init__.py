"""Networks by name, losses, metrics, prediction."""
