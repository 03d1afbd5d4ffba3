"""The use cases: from inputs to plans, and the facts to report about each. The command line and the API share them.

records               what an operation is asked for, and what it returns
inputs                the checkpoints that take part
names                 the names that a user gives, and the default output
averaging             the average of checkpoints
running_mean_window   the mean over a part of training, from two running means
ema_apply             the average that the inputs mean: one of the next three
stored_ema            the average that a checkpoint holds, in place of the weights; lists of such averages
computed_ema          the moving average that a run would have had, computed from its checkpoints
posthoc_ema           averages from snapshots of averages
lengths               the lengths that are asked for, and the names of their outputs
opennmt_config        what an OpenNMT-tf configuration says about averages
learning_rates        learning rates of schedules: rows, landmarks, pictures, logs, other frameworks' options
report_files          writes tables and pictures to files
"""
