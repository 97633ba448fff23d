"""`bench peers`: Bestiary and other runtimes on the same work, in turn, each in processes of its own."""
