"""Moving averages that checkpoints hold: where each framework keeps them, and how to apply them.

average       what was found: a StoredAverage
layouts       recognise one, by the rules of in_place, inside and lists (what they share: seen)
files         averages in files and folders of their own
name_maps     names that were flattened or prefixed; nameless: lists without names, aligned by order or by value
trees         the containers of a file as plain trees
verdicts      what the numbers say: frozen, equal, partial, NaN
plan          the plan that puts an average in the weights' place
running_means plain means with a count of what they are the mean of
window        the plan that takes the mean over a part of training out of two running means
"""
