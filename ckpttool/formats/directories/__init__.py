"""Checkpoints that are directories, or several files that belong together.

common               what all of them need: parts, shares of an output, copies
auxiliary            what is next to the weights: what is copied, and what is left out
huggingface          Hugging Face's directories
huggingface_writer   their output
slices               safetensors files in which every rank has saved slices of tensors
trainer_records      what a trainer and a model record next to the weights
parts                one file for each rank, layer or object, averaged file by file
zero                 DeepSpeed's ZeRO
zero_files           its files
zero_partitions      where the elements of a parameter are in them
"""
