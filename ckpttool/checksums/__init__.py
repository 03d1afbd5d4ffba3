"""Checksums of parts, put together: CRC-32 for zip archives, CRC-32C for TensorFlow."""
