"""Verdicts over numbers: `check` says what is wrong with a model's normalization, and why.

One rule is one function, in a file of its hundred. What they read is measured by `probe`; nothing
here hooks or runs a model.

| SL1.. | the model as it is built | `construction`, `order` |
| SL2.. | modes and running statistics | `modes`, `buffers`, `beginnings`, `ranks`, `twins` |
| SL3.. | what it does on batches | `statistics`, `batches`, `values`, `inputs`, `sharing` |
| SL4.. | what the training loop did | `training`, `readings` |
| SL5.. | beside a reference | `conversion`, `copies` |
"""
