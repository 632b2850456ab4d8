"""Pictures of a run, as PNG and SVG: one file each, and `rendering` which they share."""
