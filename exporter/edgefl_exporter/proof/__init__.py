"""The proof that a finished file computes what PyTorch computes."""
