"""NumPy's archives.

npz_file      reads and lays out an .npz
npz_layout    its records
npy_header    the header of an array
"""
