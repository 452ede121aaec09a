"""Which values a network overwrites in place after they are made: those must be copied before they are taken out.

Recordings tell it exactly: every node knows the memory that its value is in, and the memory that it writes into.
"""

from collections.abc import Container

from torch import fx


def is_overwritten(node: fx.Node, by: Container[fx.Node] | None = None) -> bool:
    """Whether a later operator (one of `by`, if given) writes into the memory of a node's value."""
    memory, later = node.meta.get("memory"), False
    for other in node.graph.nodes:
        if later and memory in other.meta.get("writes", ()) and (by is None or other in by):
            return True
        later = later or other is node
    return False


def lasting_memory(graph: fx.Graph) -> set[object]:
    """The memory of parameters, buffers and other attributes: what is written into it outlives a pass."""
    return {n.meta.get("memory") for n in graph.nodes if n.op == "get_attr"}
