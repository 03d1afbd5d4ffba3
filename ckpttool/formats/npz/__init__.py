"""NumPy's archives.

archive       reads and lays out an .npz
writer        its records
npy_header    the header of an array
"""
