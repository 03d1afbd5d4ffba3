"""PyTorch's files: zip and the older pickle, and what is packed around them.

file      reads and lays out zip files
legacy    reads files from before PyTorch 1.6
tensors   the objects in a pickle that stand for tensors
tree      the nested state dict
modules   modules that were pickled whole
writer    the output: the newest's container with other tensors
nemo      NeMo's tar archives of torch files
"""
