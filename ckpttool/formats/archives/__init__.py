"""Zip archives: where a record's bytes are, and where those of an output go.

zip_archive       the directory of an archive, and extents of its records
zip_layout        an archive laid out to the byte
"""
