"""Directories of torch.distributed.checkpoint.

directory         reads and lays out a directory
metadata          its .metadata, read inertly and written
chunks            the files that hold the tensors' chunks
tree              the nested state dict that it describes
"""
