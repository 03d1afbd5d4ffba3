"""What will be done, and every reason not to. Reads no weight, writes nothing.

request          what a plan is asked for: members, policy, form of the output
planner          makes the plan
plan             the plan: the members, what becomes of each tensor, and the output laid out
matching         which tensor of one member is which tensor of another
configurations   where the configurations of members differ
quantized        weights that are stored as codes with scales
destination      where the output goes, and whether it may go there
notes            what a user should know of a plan
"""
