"""Reads bytes: from the extents of files to the values of tensors.

storage       where files are: list, stat, open; snapshot: what one operation sees of it
<<<<<<< HEAD
sources       input files, read at any place, and unchanged in the end; descriptors: how many are open
=======
opened        files that a format looks into: any range of bytes
sources       open input files, read at any place, and unchanged in the end
>>>>>>> 62f3ff5 (Describe each format in one typed row of the registry)
strided       tensors that are views of one storage
tiled         tensors that are stored in several pieces
values        a whole tensor as a numpy array
verification  the checksums that files state, compared in the same pass
dtypes        element types as numpy has them
scratch       the buffers of one thread
"""
