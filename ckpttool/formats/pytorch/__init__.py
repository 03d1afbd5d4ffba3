"""PyTorch's files: zip and the older pickle, and what is packed around them.

file          reads them; legacy: those from before PyTorch 1.6
tensors       the records of a pickle that are tensors
tree          the nested state dict, walked
writer        the output: the newest's container with other bytes in it
nemo          NeMo's tar with such a file in it
"""
