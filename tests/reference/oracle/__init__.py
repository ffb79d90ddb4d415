"""slicemill's oracle: tiny checkpoints in every published layout, and what they must answer."""
