"""Measurements of speed and memory. Run from the checkout; not part of the package."""
