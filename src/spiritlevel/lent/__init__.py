"""A model, lent: run it as you like; it comes back as it was."""
