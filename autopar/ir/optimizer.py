"""What an optimizer keeps per parameter: tensors of the parameter's own size and dtype, as torch.optim makes them."""

STATE_COPIES = {"adamw": 2, "adam": 2, "momentum": 1, "sgd": 0}
"""AdamW and Adam: two moments; SGD: a momentum buffer, or nothing.

For plans, which shard state as they shard its parameter. `autopar.profiler.optimizers` asks torch's own optimizers, for
others too; the two are held against each other in the tests.
"""
