"""The commands as functions, for those who call ckpttool from Python. The same words, the same defaults.

>>> import ckpttool as ct
>>> ct.average("runs/a", last=5, output="averaged.safetensors")  # doctest: +SKIP
>>> ct.ema_apply("runs/a", decay=[0.999, 0.9999], output="ema-{decay}.safetensors")  # doctest: +SKIP
>>> ct.open_checkpoint("averaged.safetensors")["encoder.weight"]  # doctest: +SKIP

The first is the same as

>>> found = ct.discover("runs/a").last(5)  # doctest: +SKIP
>>> plan = ct.make_plan(found, "averaged.safetensors")  # doctest: +SKIP
>>> ct.execute(plan)  # doctest: +SKIP

averages      average, ema-apply, and the list of stored averages
checkpoints   a checkpoint, opened, whose tensors are numpy arrays
keywords      the keywords that several functions have, and answers to misspelt ones

The names are imported from `ckpttool`, which loads what is used.
"""
