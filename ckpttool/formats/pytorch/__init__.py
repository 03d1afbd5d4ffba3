"""PyTorch's files: zip and the older pickle, and what is packed around them.

torch_file        reads them; torch_legacy: those from before PyTorch 1.6
torch_tensors     the records of a pickle that are tensors
torch_tree        the nested state dict, walked
torch_layout      the output: the newest's container with other bytes in it
nemo_archive      NeMo's tar with such a file in it
"""
