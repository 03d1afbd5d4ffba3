"""The commands as Python functions, with the same names and defaults.

>>> import ckpttool as ct
>>> result = ct.average("runs/a", last=5, output="averaged.safetensors")
>>> results = ct.ema_apply("runs/a", decay=[0.99, 0.999], output="ema-{decay}.safetensors")
>>> ct.open_checkpoint("averaged.safetensors")["encoder.weight"].shape
(4, 3)

The first is the same as

>>> found = ct.discover("runs/a").last(5)
>>> plan = ct.make_plan(found, "averaged.pt")
>>> result = ct.execute(plan)

averages      average, ema-apply, and the list of stored averages
checkpoints   a checkpoint, opened, whose tensors are numpy arrays
keywords      the keywords that several functions have, and answers to misspelt ones

The names are imported from `ckpttool`, which loads what is used.
"""
