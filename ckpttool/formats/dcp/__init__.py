"""Directories of torch.distributed.checkpoint.

distributed       reads and lays out a directory
dcp_metadata      its .metadata, read inertly and written
dcp_chunks        the files that hold the tensors' chunks
dcp_tree          the nested state dict that it stands for
"""
