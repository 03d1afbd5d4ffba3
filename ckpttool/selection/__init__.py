"""Which checkpoints take part: what a model directory holds, and which of it is taken.

names          which number of a name orders the checkpoints, and what it counts
detection      which row of the table of layouts a directory follows
listing        the names in a directory, and the error for a path that is not there
opening        entries, each opened once
scale          all entries on one scale: by content, or by name
twins          links and copies
discovery      the checkpoints of a directory
lists          a list of checkpoints as it is given
families       the ends of epochs, and updates between them: which are meant
choice         the last, the best, every k-th: choosing among them
ranking        the best by a metric
metrics        metrics by name
metric_files   the files in which runs keep metrics
"""
