"""Steps that fail: noticed, traced to their origin, and made again."""
