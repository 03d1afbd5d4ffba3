"""Checksums of a whole from those of its parts.

crc32      CRC-32, the checksum of zip archives
crc32c     CRC-32C, the checksum of TensorFlow checkpoints
by_kind    either, by the name that extents and output files have for it
compiled   both in C, if that was built
"""
