"""The graph of Python objects that a TensorFlow checkpoint holds: how an object's variables find their keys.

    TrackableObjectGraph   1 nodes, the root first
    node                   1 children (node, name), 2 attributes (name, full name, checkpoint key),
                           3 slot variables (variable's node, slot's name, slot's node), 4 saver, 5 has values

tensorflow/core/protobuf/trackable_object_graph.proto. What does not fit raises `ValueError`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from ckpttool.formats.tensorflow import protobuf

__all__ = ["OBJECT_GRAPH", "prune_object_graph"]

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
"""Its key in the index."""


def prune_object_graph(graph: bytes, kept: AbstractSet[str]) -> bytes:
    """An object graph without the variables whose keys are not kept.

    Without this TensorFlow would look for the values of an optimizer that the checkpoint does not hold, and fail; so
    the optimizer starts afresh. Nodes stay, so that their numbers stay.

    Raises:
        ValueError: The graph is damaged.
    """
    nodes = [(number, value) for number, value in protobuf.fields(graph)]
    emptied = set()
    pruned: list[list[protobuf.Field]] = []
    for position, (_, value) in enumerate(nodes):
        node = []
        for number, field in protobuf.fields(protobuf.message(value)):
            if number == 2 and _attribute_key(protobuf.message(field)) not in kept:
                emptied.add(position)
            else:
                node.append((number, field))
        pruned.append(node)
    out = []
    for (node_number, _), node in zip(nodes, pruned, strict=True):
        parts = []
        for number, field in node:
            if number == 3 and _slot_node(protobuf.message(field)) in emptied:
                continue
            parts.append(_encode(number, field))
        out.append(protobuf.write_bytes(node_number, parts))
    return b"".join(out)


def _attribute_key(attribute: bytes) -> str:
    """The checkpoint key (3) of a SerializedTensor."""
    return next((protobuf.message(value).decode() for number, value in protobuf.fields(attribute) if number == 3), "")


def _slot_node(reference: bytes) -> int:
    """The node (3) of a SlotVariableReference."""
    return next((protobuf.number(value) for number, value in protobuf.fields(reference) if number == 3), 0)


def _encode(number: int, field: int | bytes) -> bytes:
    return protobuf.write_bytes(number, field) if isinstance(field, bytes) else protobuf.write_varint(number, field)
