"""A run before and around its rounds: the run file, what it needs, the devices that are emulated for it."""
