"""Moving averages that checkpoints hold: where each framework keeps them, and how to apply them.

stored_average   what was found: a StoredAverage
locating         finds one, by the rules of in_place, state_dicts and parameter_lists (what they share: candidates)
files            averages in files and folders of their own
name_maps        names that were flattened or prefixed; alignment: lists without names, aligned by order or by value
trees            the containers of a file as plain trees
diagnosis        what the numbers say: frozen, equal, partial, NaN
running_means    plain means with a count of what they are the mean of
"""
