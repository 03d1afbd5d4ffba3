"""NumPy's archives.

archive       reads and lays out an .npz
writer        its records
header        the header of an array
"""
