"""Checkpoints that are directories, or several files that belong together.

common                what all of them need: parts, shares of an output, copies
auxiliary             what is next to the weights: what is copied, and what is left out
huggingface           Hugging Face's directories; huggingface_writer: their output
slices                tensors that every rank has saved a slice of
trainer_records       what a trainer and a model record next to the weights
parts                 one file a rank, layer or object, averaged file by file
zero                  DeepSpeed's ZeRO; zero_files: its files; zero_partitions: where a parameter's elements are in them
"""
