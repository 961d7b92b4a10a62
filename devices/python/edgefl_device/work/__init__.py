"""What a device does when it is asked: tasks in order, on its state, with what it keeps on disk."""
