"""How engines of different makes are spoken to: one small protocol, one file each."""
