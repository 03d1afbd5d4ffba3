"""TensorFlow 2 checkpoints, without TensorFlow.

bundle         reads a checkpoint
writer         lays one out
container      what a checkpoint holds
entries        the index: keys, types, places, checksums
variables      which keys are weights, and which training state
object_graph   the graph of objects that restoring follows
leveldb        the sorted table that an index is
protobuf       the messages of its entries
"""
