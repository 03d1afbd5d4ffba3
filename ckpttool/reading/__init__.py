"""Reads bytes: from the extents of files to the values of tensors.

storage        where files are: list, stat, open
snapshot       what one operation has seen of the storage
opened         files that a format looks into: any range of bytes
sources        input files, which stay as they were when they were opened
descriptors    how many files are open
strided        tensors that are views of one storage
tiled          tensors that are stored in several pieces
values         a whole tensor as a numpy array
verification   the checksums that files state, compared in the same pass
dtypes         element types as numpy has them
yaml_text      YAML as plain values
scratch        the buffers of one thread
"""
