"""What the tests of this folder share: a small model, one that misbehaves, streams that watch, what a process holds."""
