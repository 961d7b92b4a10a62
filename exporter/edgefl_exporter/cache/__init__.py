"""Bundles that were made before: what determines one, and where it lies."""
