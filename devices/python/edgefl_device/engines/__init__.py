"""What carries out programs on a device."""
