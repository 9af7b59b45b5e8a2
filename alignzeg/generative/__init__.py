"""The pixel-level family: a generator makes features of unseen classes from their names."""
