"""The training loop: samples, steps, hooks, and the trainer around them."""
