"""Moving averages that checkpoints hold: finding them, and pairing them with the weights.

stored_average     the record of an average that was found
locating           finds one, by the tables of `ckpttool.formats.average_keys` and the rules of the next three modules
in_place           averages that are in the place of the weights
state_dicts        averages in a state dict
parameter_lists    averages in a list without names
candidates         what these rules share
files              opens files that hold an average; averages in files and directories of their own
name_maps          names that were flattened or prefixed
alignment          lists without names: by order, or by value
diagnosis          findings by the values: frozen, equal, partial, NaN
already_averaged   checkpoints whose weights are an average already
running_means      plain means, with the count of what they are the mean of
"""
