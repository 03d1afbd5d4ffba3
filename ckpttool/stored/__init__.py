"""Moving averages that checkpoints hold: where each framework keeps them, and how to apply them.

average       what was found: a StoredAverage
layouts       recognise one, by the rules of in_place, inside and lists (what they share: seen)
files         averages in files and folders of their own
name_maps     names that were flattened or prefixed; nameless: lists without names, aligned by order or by value
trees         the containers of a file as plain trees
verdicts      what the numbers say: frozen, equal, partial, NaN
plan          the plan that puts an average in the weights' place
"""
