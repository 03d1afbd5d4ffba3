"""The use cases: from inputs to plans, and the facts to report about each. The command line and the API share them.

requests              the records: which checkpoints, what becomes of them, what is planned
inputs                the checkpoints that take part, and where the output goes if nothing is said
averaging             the average of checkpoints
running_mean_window   the mean over a part of training, out of two running means
ema_apply             the average that the inputs mean: one of the three that follow
stored_ema            the moving average that a checkpoint holds, in the weights' place; lists of such
computed_ema          the moving average that a run would have had, computed from its checkpoints
posthoc_ema           averages out of snapshots of averages
lengths               the lengths that are asked for, and the names of their outputs
learning_rates        learning rates of schedules: rows, landmarks, pictures, logs, other frameworks' options
report_files          tables and pictures in files: whole or not at all
"""
