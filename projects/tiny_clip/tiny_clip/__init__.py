"""How the bundled tiny CLIP was made: picture-caption pairs, irregular crops, no masks in training.

The class token of a crop is the region function of :mod:`alignzeg.modeling.vlm.regions`, so one
pass over a picture serves all its crops, and training and inference share the code.
"""
