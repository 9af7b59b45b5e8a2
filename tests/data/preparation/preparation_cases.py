"""What the tests of the preparation share."""

from __future__ import annotations


def snapshot(root):
    """Content and time of change of every file below a folder."""
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
