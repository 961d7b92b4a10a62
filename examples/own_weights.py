"""A weight rule of your own: weight = { name = "own_weights.py:by_power", power = 0.5 } in [method]."""

from edgefl.method import Reply


def by_power(reply: Reply, power: float = 0.5) -> float:
    """n_k^power: between every device the same, 0, and every example the same, 1.

    A rule is a function of what a reply says of itself (`examples`, `steps`, `metrics`, `tensors`) and gives a number
    above 0. Its further arguments are numbers that a run file may set.
    """
    return reply.examples**power
