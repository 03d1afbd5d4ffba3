"""The use cases: from inputs to a plan and the facts to report about it.

stored_ema            the moving average that a checkpoint holds, in the weights' place
running_mean_window   the mean over a part of training, out of two running means
"""
