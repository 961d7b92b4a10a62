"""A training program that needs less memory: forward tensors are made again in the backward instead of kept.

Exactly the same mathematics: a copy of a node computes what the node computed. Anchor: Patil et al. 2022, POET,
arXiv:2207.07697, whose integer programme is a greedy choice here. Nothing here needs torch.

    training      what of a program is forward, what the backward reads of it
    recompute     the program's nodes with some of those tensors made again
    order         the order that onnxruntime takes
    curve         greedy: programs of less and less memory and more and more work
    write         such a program as a file
    growth        what a step makes a process grow by, measured in one
    fit           the first program of the curve that fits a budget
"""
