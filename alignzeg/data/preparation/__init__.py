"""From official archives to label files that the split files describe; `datasets/` starts it.

A recipe says which archives it needs and which label files follow from them. Everything else is
common: unpacking, parallel work that can be interrupted at any moment, and the check of the result.
Label files keep the official values where the official files can be used as they are; what a value
means is said in `alignzeg/data/splits` and applied in `alignzeg/data/labels.py` alone.
"""
