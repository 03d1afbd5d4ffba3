"""TensorFlow 2 checkpoints, without TensorFlow.

bundle        reads a checkpoint; writer: lays one out; container: what it holds
entries       its index: keys, types, places, checksums
variables     which keys are weights, and which training state
object_graph  the graph of objects that restoring follows
leveldb       the sorted table that an index is
protobuf      the messages that its entries are
"""
