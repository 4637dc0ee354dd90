"""Networks by name, losses, metrics, prediction in tiles and with test-time augmentation."""
