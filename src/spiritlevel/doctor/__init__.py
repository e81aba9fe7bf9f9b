"""Verdicts over numbers: `check` says what is wrong with a model's normalization, and why.

One rule is one function (`construction`, `buffers`, `statistics`, `training`, `conversion`). What
they read is measured by `probe`; nothing here hooks or runs a model.
"""
