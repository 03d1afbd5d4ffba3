"""Pickles, without executing anything of them.

inert_pickle      reads one into plain records of what it says
pickle_bounds     what it may ask for, counted before it is read
pickle_emitter    writes such records again
"""
