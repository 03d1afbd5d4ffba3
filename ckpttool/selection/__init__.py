"""Which checkpoints: what a model directory holds, and what of it takes part.

layouts       one table: what each framework calls its files
detection     which row of it a directory follows
discovery     the checkpoints of a directory, or of a list
kinds         the ends of epochs and updates between them: which is meant
choice        the last, the best, every k-th: choosing among them
metrics       where a run keeps its scores
"""
