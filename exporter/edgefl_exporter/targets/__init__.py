"""Runtimes that a bundle can hold files for, beside the portable programs."""
