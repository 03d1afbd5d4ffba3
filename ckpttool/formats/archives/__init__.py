"""Zip archives: where a record's bytes are, and where those of an output go.

zip_reader        the directory of an archive, and extents of its records
zip_writer        an archive laid out to the byte
"""
