"""Checkpoints: written whole, read safely, gone on from exactly."""
