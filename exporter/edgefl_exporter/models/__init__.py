"""A model before it is a program: found by its name, taken apart, its randomness made the same everywhere."""
