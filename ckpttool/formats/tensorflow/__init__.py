"""TensorFlow 2 checkpoints, without TensorFlow.

tensorflow_bundle     reads and lays out a checkpoint
bundle_entries        its index: keys, types, places, checksums
bundle_variables      which keys are weights, and which training state
object_graph          the graph of objects that restoring follows
leveldb_table         the sorted table that an index is
protobuf_wire         the messages that its entries are
"""
