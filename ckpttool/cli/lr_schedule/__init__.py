"""``ckpttool lr-plot-table``: parsing and printing. The rules are in `ckpttool.schedules` and `ckpttool.operations`.

command    the command and its options
parsing    texts of options as values; parameters of messages as options
answers    what --as, --compare-log and --fit print
terminal   pictures in the terminal
"""
