"""Losses and the assignment of proposals to ground truth."""
