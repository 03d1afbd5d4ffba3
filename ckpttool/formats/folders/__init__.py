"""Checkpoints that are directories, or several files that belong together.

directories           what all of them need: parts, companions, copies
sharded               Hugging Face's directories; sharded_layout: their output
slices                tensors that every rank has saved a slice of
trainer_records       what a trainer says of itself beside the weights
parts                 one file a rank, layer or object, averaged file by file
zero_shards           DeepSpeed's ZeRO; zero_partitions: where a parameter's elements are in it
"""
