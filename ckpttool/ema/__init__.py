"""Moving averages that checkpoints hold: finding them, and pairing them with the weights.

stored_average    what is found: a StoredAverage
locating          finds one, by the tables of formats.average_keys and the rules of in_place, state_dicts and
                  parameter_lists; candidates: what the rules share
files             opens what holds one; averages in files and directories of their own
name_maps         names that were flattened or prefixed; alignment: lists without names, by order or by value
diagnosis         findings by the values: frozen, equal, partial, NaN
already_averaged  checkpoints whose weights are an average already
running_means     plain means with a count of what they are the mean of
"""
