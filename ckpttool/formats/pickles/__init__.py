"""Pickles, without executing anything of them.

inert         reads one into plain records of what it says
bounds        what it may ask for, counted before it is read
emitter       writes such records again
"""
