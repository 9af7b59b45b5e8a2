"""From YAML and KEY VALUE pairs to one checked config."""
