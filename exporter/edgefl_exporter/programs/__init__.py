"""Programs: what is computed and differentiated, as pure functions of named tensors, beside PyTorch's own answer."""
